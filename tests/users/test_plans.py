"""The query plans show that PostgreSQL uses an index for every page and every search."""

import re

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app import NAME
from tests.conftest import Service
from tests.people import sign_up_superuser

INSERT_USERS = """
    INSERT INTO users (email, full_name, password_hash, is_active, is_superuser, credentials_version,
                       created_at, updated_at)
    SELECT md5(i::text) || '@example.com', 'User ' || md5((-i)::text), '', true, false, 1, now(), now()
    FROM generate_series(1, 20000) AS i
"""
LAST_QUERY = f"""
    SELECT query FROM pg_stat_activity WHERE datname = current_database() AND application_name = '{NAME}'
    ORDER BY query_start DESC LIMIT 1
"""
PRIMARY_KEY, SEARCH_INDEX = "Index Scan Backward using pk_users", "Bitmap Index Scan on ix_users_search"


async def generic_plan(connection: asyncpg.Connection, query: str) -> str:
    """Return a query's generic plan. PostgreSQL may switch to it after five executions of a prepared statement."""
    nulls = ", ".join("NULL" for _ in set(re.findall(r"\$[0-9]+", query)))
    await connection.execute(f"SET plan_cache_mode = force_generic_plan; PREPARE page AS {query}")
    plan = await connection.fetch(f"EXPLAIN EXECUTE page({nulls})")
    await connection.execute("DEALLOCATE page")
    return "\n".join(row[0] for row in plan)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_every_page_and_search_uses_an_index(service: Service, database_url: str) -> None:
    async with AsyncSession(service.state["engine"]) as session:
        root = await sign_up_superuser(service.client, session)
    connection = await asyncpg.connect(database_url)
    await connection.execute(INSERT_USERS)
    await connection.execute("VACUUM ANALYZE users")  # also empties the pending list of the GIN index

    plans = {}
    for query in ("", "cursor=MTAwMDA", "q=example", "q=c4ca4238a0b9", "q=C4CA42&is_active=true&cursor=MTAwMDA"):
        response = await service.client.get(f"/users/?limit=20&{query}", headers=root.auth)
        assert response.status_code == 200
        plans[query] = await generic_plan(connection, await connection.fetchval(LAST_QUERY))
    await connection.close()

    used = {query: [index for index in (PRIMARY_KEY, SEARCH_INDEX) if index in plan] for query, plan in plans.items()}
    assert used == {
        "": [PRIMARY_KEY],
        "cursor=MTAwMDA": [PRIMARY_KEY],  # a page in the middle of the list
        "q=example": [PRIMARY_KEY],  # matches every user, so the first rows fill a page
        "q=c4ca4238a0b9": [SEARCH_INDEX],  # matches one user
        "q=C4CA42&is_active=true&cursor=MTAwMDA": [SEARCH_INDEX],
    }, plans
