"""Create the database role of the service, which can read and write rows, but cannot create or change tables."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# These statements are idempotent: they can be run again after each migration and after a restore. `format` quotes the
# names and the password.
#
# By default, every role may create temporary tables and large objects. These use disk space, and a restore fails if a
# large object of the backup still exists. A REVOKE by a role that does not own the database or the function has no
# effect, except a warning. It fails if the role may not call the function itself, so functions that have already been
# revoked are skipped.
_STATEMENTS = text("""
    SELECT format(statement, CAST(:role AS text), CAST(:password AS text), current_schema(), current_database())
    FROM unnest(ARRAY[
        'DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = %1$L) THEN CREATE ROLE %1$I; END IF; END $$',
        'ALTER ROLE %1$I LOGIN PASSWORD %2$L',
        'GRANT USAGE ON SCHEMA %3$I TO %1$I',
        'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %3$I TO %1$I',
        'REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM %1$I',
        'REVOKE TEMPORARY ON DATABASE %4$I FROM PUBLIC'
    ]) AS statement
    UNION ALL
    SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', CAST(oid AS regprocedure)) FROM pg_proc
    WHERE pronamespace = CAST('pg_catalog' AS regnamespace)
        AND proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_import')
        AND has_function_privilege('public', oid, 'EXECUTE')
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
