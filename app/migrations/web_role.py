"""Create the database role of the service, which can read and write rows, but cannot change tables."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# These statements are idempotent: they can be run again after each migration and after a restore. `format` quotes the
# names and the password.
_STATEMENTS = text("""
    SELECT format(statement, CAST(:role AS text), CAST(:password AS text), current_schema()) FROM unnest(ARRAY[
        'DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = %1$L) THEN CREATE ROLE %1$I; END IF; END $$',
        'ALTER ROLE %1$I LOGIN PASSWORD %2$L',
        'GRANT USAGE ON SCHEMA %3$I TO %1$I',
        'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %3$I TO %1$I',
        'REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM %1$I'
    ]) AS statement
""")


async def grant_to_web_role(connection: AsyncConnection, role: str, password: str) -> None:
    """Create a role if it is missing, and set its password and its privileges.

    Raises:
        DBAPIError: The connection's own role lacks a privilege. Do not log the error: its statement contains the
            password.
    """
    statements = await connection.execute(_STATEMENTS, {"role": role, "password": password})
    for statement in statements.scalars().all():
        await connection.exec_driver_sql(statement)
