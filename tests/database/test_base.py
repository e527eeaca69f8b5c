"""Datetime columns return timezone-aware values in UTC on both databases."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.users.models import User


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5))])
async def test_datetime_is_returned_unchanged_in_utc(session: AsyncSession, zone: timezone) -> None:
    stored = datetime(2026, 1, 15, 10, 30, 0, 123456, zone)
    session.add(User(email="ann@example.com", full_name="Ann", password_hash="none", created_at=stored))
    await session.commit()

    returned = await session.scalar(select(User.created_at))

    assert returned == stored
    assert returned is not None
    assert returned.utcoffset() == timedelta()
