"""The database: the base class of models, the engine, and the classification of database errors."""

from app.database.base import Base, PrimaryKey, utc_now
from app.database.engine import autocommit, create_engine, database_location
from app.database.errors import CHECK_SCHEMA, DATABASE_ERRORS, DatabaseUnreachable, is_outage, is_unique_violation
from app.database.fast import FastReader
from app.database.outages import OutageLog

__all__ = [
    "CHECK_SCHEMA",
    "DATABASE_ERRORS",
    "Base",
    "DatabaseUnreachable",
    "FastReader",
    "OutageLog",
    "PrimaryKey",
    "autocommit",
    "create_engine",
    "database_location",
    "is_outage",
    "is_unique_violation",
    "utc_now",
]
