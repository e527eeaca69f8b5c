"""PostgreSQL finds every page, and whoever is searched for, through an index: the plans of what it was really asked."""

import re

import asyncpg
import pytest

from app import NAME
from tests.conftest import Service
from tests.people import sign_up_superuser

MANY = """
    INSERT INTO users (email, full_name, password_hash, is_active, is_superuser, credentials_version,
                       created_at, updated_at)
    SELECT md5(i::text) || '@example.com', 'User ' || md5((-i)::text), '', true, false, 1, now(), now()
    FROM generate_series(1, 20000) AS i
"""
LAST_QUERY = f"""
    SELECT query FROM pg_stat_activity WHERE datname = current_database() AND application_name = '{NAME}'
    ORDER BY query_start DESC LIMIT 1
"""
BY_KEY, BY_TEXT = "Index Scan Backward using pk_users", "Bitmap Index Scan on ix_users_search"


async def generic_plan(connection: asyncpg.Connection, query: str) -> str:
    """The plan that PostgreSQL makes without looking at the parameters, as it may after a few times."""
    nothing = ", ".join("NULL" for _ in set(re.findall(r"\$[0-9]+", query)))
    await connection.execute(f"SET plan_cache_mode = force_generic_plan; PREPARE page AS {query}")
    plan = await connection.fetch(f"EXPLAIN EXECUTE page({nothing})")
    await connection.execute("DEALLOCATE page")
    return "\n".join(row[0] for row in plan)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_an_index_serves_each_page_and_each_search(service: Service, database_url: str) -> None:
    async with service.state["write_sessions"]() as session:
        root = await sign_up_superuser(service.client, session)
    connection = await asyncpg.connect(database_url)
    await connection.execute(MANY)
    await connection.execute("VACUUM ANALYZE users")  # which also puts the new rows into the index for good

    plans = {}
    for query in ("", "cursor=MTAwMDA", "q=example", "q=c4ca4238a0b9", "q=C4CA42&is_active=true&cursor=MTAwMDA"):
        response = await service.client.get(f"/users/?limit=20&{query}", headers=root.auth)
        assert response.status_code == 200
        plans[query] = await generic_plan(connection, await connection.fetchval(LAST_QUERY))
    await connection.close()

    used = {query: [index for index in (BY_KEY, BY_TEXT) if index in plan] for query, plan in plans.items()}
    assert used == {
        "": [BY_KEY],
        "cursor=MTAwMDA": [BY_KEY],  # from the middle on
        "q=example": [BY_KEY],  # fits all of them, so a page is soon full
        "q=c4ca4238a0b9": [BY_TEXT],  # fits one
        "q=C4CA42&is_active=true&cursor=MTAwMDA": [BY_TEXT],
    }, plans
