"""The engine for PostgreSQL: how connections are made, and when they are replaced."""

import asyncio
import ssl
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import structlog
from sqlalchemy import event
from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from app import NAME
from app.database.errors import READ_ONLY, DatabaseUnreachable
from app.settings import Settings
from app.urls import split_hosts

log = structlog.stdlib.get_logger("app.database")

# Seconds after which a connection to a read-only server is replaced, because its name may lead to another server now.
READ_ONLY_SECONDS = 5.0

_SET_LOCAL_LIMITS = """
    SELECT set_config('statement_timeout', '{0}', true), set_config('idle_in_transaction_session_timeout', '{0}', true)
"""


def create_postgresql_engine(settings: Settings, options: dict[str, Any]) -> AsyncEngine:
    """Create the engine. `options` are arguments for `create_async_engine`."""
    connector = Connector(settings)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connector.connect,
        # Reads run in autocommit. A ROLLBACK after each would cost the round trip that autocommit saves.
        skip_autocommit_rollback=True,
        **options,
    )
    event.listen(engine.sync_engine, "connect", connector.note_server)
    event.listen(engine.sync_engine, "checkout", _replace_if_stale)
    event.listen(engine.sync_engine, "begin", connector.limit_transaction)
    event.listen(engine.sync_engine, "handle_error", _invalidate_if_unusable)
    return engine


class Connector:
    """Connects to the first usable host of the URL, with limits on what a statement may take.

    The server enforces the limits, which are sent as startup parameters. PgBouncer rejects those. Then a transaction
    sets its own limits, for one round trip more, and asyncpg's timeout cancels a statement outside of a transaction.
    """

    def __init__(self, settings: Settings) -> None:
        url = settings.database_url.get_secret_value()
        # asyncpg's timeout is for all hosts of a URL together. For `prefer-standby` it has to compare them.
        self._hosts = [url] if "prefer-standby" in url else split_hosts(url)
        self._timeout = settings.database_connect_timeout
        self._statement_timeout = settings.database_statement_timeout
        query = parse_qs(urlsplit(url).query)
        self._parameters = {} if "application_name" in query else {"application_name": NAME}
        # As in libpq: the system's certificate authorities, and the host name is checked.
        self._tls = ssl.create_default_context() if query.get("sslrootcert") == ["system"] else None
        self._limit = f"{self._statement_timeout:.3f}s"
        self.has_server_limits = True

    async def connect(self) -> asyncpg.Connection:
        """Connect to the first host that accepts the connection. Each host has the whole connect timeout.

        Raises:
            DatabaseUnreachable: No host can be reached.
            asyncpg.PostgresError: The server rejects the connection.
        """
        error: Exception | None = None
        for host in self._hosts:
            try:
                return await self._connect_to(host)
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched) as reason:
                error = reason
        raise DatabaseUnreachable(f"cannot connect to the database: {error!r}") from error

    async def _connect_to(self, url: str) -> asyncpg.Connection:
        if self.has_server_limits:
            limits = {"statement_timeout": self._limit, "idle_in_transaction_session_timeout": self._limit}
            try:
                # The server cancels a slow statement itself. asyncpg's timeout is for a server that does not answer.
                return await self._open(url, self._parameters | limits, self._statement_timeout + 1)
            except asyncpg.ProtocolViolationError as error:
                if "unsupported startup parameter" not in str(error):
                    raise
                self.has_server_limits = False
                log.info("a pooler rejects startup parameters: each transaction sets its own timeouts")
        return await self._open(url, self._parameters, self._statement_timeout)

    async def _open(self, url: str, parameters: dict[str, str], command_timeout: float) -> asyncpg.Connection:
        return await asyncpg.connect(
            url, ssl=self._tls, timeout=self._timeout, command_timeout=command_timeout, server_settings=parameters
        )

    def note_server(self, _: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        """Store what the connection's use depends on."""
        driver_connection: asyncpg.Connection = record.driver_connection  # type: ignore[assignment]  # of this engine
        record.info["connected_at"] = time.monotonic()
        record.info["is_read_only"] = _is_read_only(driver_connection)
        record.info["has_server_limits"] = self.has_server_limits

    def limit_transaction(self, connection: Connection) -> None:
        """Set the limits of a transaction, if the connection has none."""
        if not self.has_server_limits and connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql(_SET_LOCAL_LIMITS.format(self._limit))


def _is_read_only(connection: asyncpg.Connection) -> bool:
    """Return what the server has reported with its latest answer. A pooler reports nothing."""
    reported = connection.get_settings()
    names = ("in_hot_standby", "default_transaction_read_only")
    return any(getattr(reported, name, "off") == "on" for name in names)


def _replace_if_stale(_: DBAPIConnection, record: ConnectionPoolEntry, __: PoolProxiedConnection) -> None:
    """Replace a connection that the server has closed, or whose server has become read-only.

    asyncpg knows both without asking the server. `pool_pre_ping` would cost a round trip per checkout.
    """
    driver_connection: asyncpg.Connection = record.driver_connection  # type: ignore[assignment]  # of this engine
    if driver_connection.is_closed():
        raise DisconnectionError
    if _is_read_only(driver_connection):
        age = time.monotonic() - record.info["connected_at"]
        if not record.info["is_read_only"]:
            log.warning("the database has become read-only: its connections are replaced")
            raise DisconnectionError
        if age > READ_ONLY_SECONDS:
            raise DisconnectionError


def _invalidate_if_unusable(context: ExceptionContext) -> Exception | None:
    """Invalidate a connection that cannot be used again, so that the pool replaces it.

    After a timeout or a cancelled request, the statement may still run. Ending it in order would mean waiting for it.
    After a write on a read-only server the whole pool is replaced: the server's name may lead to another server by now.
    """
    error = context.original_exception
    if context.connection and isinstance(error, OSError | asyncio.CancelledError):  # TimeoutError is an OSError
        connection = context.connection.connection
        if not needs_cancel(connection, error):
            driver_connection: asyncpg.Connection = connection.driver_connection  # type: ignore[assignment]
            driver_connection.terminate()
        context.is_disconnect = True
    elif getattr(error, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True
    return DatabaseUnreachable(f"the database does not answer: {error!r}") if isinstance(error, OSError) else None


def needs_cancel(connection: PoolProxiedConnection, error: BaseException) -> bool:
    """Return whether a statement may run on after a timeout, because the server does not cancel it itself.

    asyncpg cancels it when the connection is closed in order, but not when it is terminated.
    """
    return isinstance(error, TimeoutError) and not (connection.record_info or {}).get("has_server_limits", True)
