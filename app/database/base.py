"""The base class of every model."""

from datetime import UTC, datetime
from typing import Annotated, ClassVar

from sqlalchemy import BigInteger, DateTime, Identity, Integer, MetaData
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, mapped_column
from sqlalchemy.types import TypeDecorator


def utc_now() -> datetime:
    """Return the current time in UTC as a timezone-aware datetime."""
    return datetime.now(UTC)


class _SQLiteDateTime(TypeDecorator[datetime]):
    """Stores datetimes in UTC, because SQLite does not store time zones."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _: Dialect) -> datetime | None:
        return value and value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, _: Dialect) -> datetime | None:
        return value and value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """The base class of every model."""

    # Give every constraint a predictable name, so that migrations can refer to it.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {datetime: DateTime(timezone=True).with_variant(_SQLiteDateTime(), "sqlite")}


# The type of a primary key: a 64-bit integer that the database generates. SQLite generates values only for INTEGER,
# which has 64 bits there.
PrimaryKey = Annotated[int, mapped_column(BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True)]
