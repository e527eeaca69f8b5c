"""Create the engine for PostgreSQL, open its connections, and replace stale ones."""

import asyncio
import os
import ssl
import time
from functools import cache, cached_property
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
from app.urls import describe_database, split_hosts

log = structlog.stdlib.get_logger("app.database")

# Maximum age of a connection in seconds. Older connections are replaced, so that a server or a pooler that waits for
# its clients to disconnect can shut down.
MAX_AGE_SECONDS = 300
# Maximum age in seconds of a connection to a read-only server. Older connections are replaced: after a failover, the
# host name may resolve to another server, which accepts writes.
READ_ONLY_SECONDS = 5.0
# A host is considered silent if an attempt to connect to it fails or is cancelled after more than this many seconds.
SILENT_SECONDS = 0.5
# For this many seconds, a silent host is tried after all others. If it were tried first, each connection attempt would
# wait for it, so the readiness check, which times out after one second, would never reach the next host.
SILENT_HOST_SECONDS = 30.0

# After one of these errors, try the next host. libpq does the same.
_NEXT_HOST = (
    OSError,
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.TargetServerAttributeNotMatched,
)
_LIMITS = ("statement_timeout", "idle_in_transaction_session_timeout")


def create_postgresql_engine(settings: Settings, options: dict[str, Any]) -> AsyncEngine:
    """Create a PostgreSQL engine. `options` are passed on to `create_async_engine`."""
    connector = get_connector(
        settings.database_url.get_secret_value(), settings.database_connect_timeout, settings.database_statement_timeout
    )
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connector.connect,
        pool_recycle=MAX_AGE_SECONDS,
        # Do not send a ROLLBACK after reads in autocommit mode. The ROLLBACK would cost the round trip that
        # autocommit saves.
        skip_autocommit_rollback=True,
        **options,
    )
    event.listen(engine.sync_engine, "connect", connector.record_connection)
    event.listen(engine.sync_engine, "checkout", connector.replace_if_stale)
    event.listen(engine.sync_engine, "begin", connector.limit_transaction)
    event.listen(engine.sync_engine, "handle_error", connector.handle_error)
    return engine


class Connector:
    """Connects to the first usable host of the URL. Remembers hosts that do not answer and servers that are read-only.

    Timeouts are sent to the server as startup parameters. If a pooler rejects these parameters, each transaction sets
    its own timeouts, which costs a round trip. Statements outside transactions are then limited only by asyncpg's own
    timeout.
    """

    def __init__(self, url: str, connect_timeout: float, statement_timeout: float) -> None:
        self._parameters = {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}
        # asyncpg's timeout covers all hosts of a URL together, so use a separate URL for each host. For
        # `target_session_attrs=prefer-standby`, first try each host with `standby`, then each host with `any`.
        attributes = ("standby", "any") if "target_session_attrs=prefer-standby" in url else ("",)
        self._hosts = [
            host.replace("target_session_attrs=prefer-standby", f"target_session_attrs={attribute}")
            for attribute in attributes
            for host in split_hosts(url)
        ]
        self._silent_at = dict.fromkeys(self._hosts, float("-inf"))
        self._connect_timeout = float(self._parameters.get("connect_timeout", connect_timeout))
        # Make asyncpg's timeout longer than the server's, so that a slow statement is cancelled by the server.
        self._command_timeout = statement_timeout + 1
        self._name = {} if "application_name" in self._parameters else {"application_name": NAME}
        self._limits = dict.fromkeys(_LIMITS, f"{statement_timeout:.3f}s")
        settings = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in self._limits.items())
        self._set_local_limits = f"SELECT {settings}"
        self._has_server_limits = True
        self._location = describe_database(url)
        self._read_only_at = float("-inf")

    async def connect(self) -> asyncpg.Connection:
        """Connect to the first host that accepts the connection. The connect timeout applies to each host separately.

        Raises:
            DatabaseUnreachable: No host can be reached, or a file named in the URL cannot be read.
            asyncpg.PostgresError: The server rejects the connection.
        """
        for name in ("sslrootcert", "sslcert", "sslkey", "sslcrl"):  # asyncpg's error would not name the file
            if (path := self._parameters.get(name, "")) not in {"", "system"} and not os.access(path, os.R_OK):
                raise DatabaseUnreachable(f"{name} cannot be read: {path}")
        error: BaseException | None = None
        now = time.monotonic()
        for host in sorted(self._hosts, key=lambda host: now - self._silent_at[host] < SILENT_HOST_SECONDS):
            started_at = time.monotonic()
            try:
                return await self._connect_to(host)
            except BaseException as reason:
                if time.monotonic() - started_at > SILENT_SECONDS:
                    self._silent_at[host] = time.monotonic()
                if not isinstance(reason, _NEXT_HOST):
                    raise
                error = reason
        raise DatabaseUnreachable(f"cannot connect to the database: {error!r}") from error

    async def _connect_to(self, url: str) -> asyncpg.Connection:
        if self._has_server_limits:
            try:
                return await self._open(url, self._name | self._limits)
            except asyncpg.PostgresError as error:
                if not any(name in str(error) for name in self._limits):
                    raise
                self._has_server_limits = False
                _log_rejected_limits(self._location)
        return await self._open(url, self._name)

    async def _open(self, url: str, parameters: dict[str, str]) -> asyncpg.Connection:
        return await asyncpg.connect(
            url,
            ssl=self._system_tls if self._parameters.get("sslrootcert") == "system" else None,
            timeout=self._connect_timeout,
            command_timeout=self._command_timeout,
            server_settings=parameters,
        )

    @cached_property
    def _system_tls(self) -> ssl.SSLContext:
        """The TLS context for `sslrootcert=system`. It is needed because asyncpg would treat `system` as a file name.

        The context verifies host names, as libpq does.
        """
        context = ssl.create_default_context()
        context.set_alpn_protocols(["postgresql"])  # required by sslnegotiation=direct
        if certificate := self._parameters.get("sslcert"):
            context.load_cert_chain(certificate, self._parameters.get("sslkey"), self._parameters.get("sslpassword"))
        return context

    def record_connection(self, _: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        """Record when the connection was opened, whether the server is read-only, and whether it applies timeouts."""
        record.info["connected_at"] = time.monotonic()
        record.info["is_read_only"] = _is_read_only(get_driver_connection(record))
        record.info["has_server_limits"] = self._has_server_limits

    def replace_if_stale(self, _: DBAPIConnection, record: ConnectionPoolEntry, __: PoolProxiedConnection) -> None:
        """Replace a connection if the server has closed it, or if a failover may have taken place since it was opened.

        This costs no round trip, because asyncpg already notices closed connections and read-only servers.
        `pool_pre_ping` would cost a round trip per checkout.
        """
        connection = get_driver_connection(record)
        is_read_only = _is_read_only(connection)
        if is_read_only and not record.info["is_read_only"]:
            self._note_read_only()
        connected_at = record.info["connected_at"]
        is_old = time.monotonic() - connected_at > READ_ONLY_SECONDS
        if connection.is_closed() or connected_at < self._read_only_at or (is_read_only and is_old):
            raise DisconnectionError

    def _note_read_only(self) -> None:
        """Mark all open connections for replacement, because a server has become read-only.

        After a failover, the host name may resolve to another server. Connections are marked at most once every
        READ_ONLY_SECONDS: until the DNS entry changes, new connections reach the same server.
        """
        if time.monotonic() - self._read_only_at > READ_ONLY_SECONDS:
            log.warning("the database has become read-only: all connections are replaced")
            self._read_only_at = time.monotonic()

    def limit_transaction(self, connection: Connection) -> None:
        """Set the statement and idle timeouts of a transaction, unless the server applies them to the connection."""
        if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            return
        if not connection.info["has_server_limits"]:
            connection.exec_driver_sql(self._set_local_limits)

    def handle_error(self, context: ExceptionContext) -> Exception | None:
        """Invalidate a connection that cannot be used again, so that the pool replaces it.

        After a timeout or a cancelled request, the statement may still be running. The connection is usually
        terminated, because a graceful close would wait until the statement has been cancelled. It is closed gracefully
        only if the driver's timeout expired and the connection has no timeout on the server (see `needs_cancel`).
        """
        error = context.original_exception
        if context.connection and isinstance(error, OSError | asyncio.CancelledError):  # TimeoutError is an OSError
            connection = context.connection.connection
            if not needs_cancel(connection, error):
                get_driver_connection(connection).terminate()
            context.is_disconnect = True
        is_refused_write = getattr(error, "sqlstate", None) == READ_ONLY
        if is_refused_write and context.connection and not context.connection.info["is_read_only"]:
            self._note_read_only()
        return DatabaseUnreachable(f"the database does not answer: {error!r}") if isinstance(error, OSError) else None


@cache
def get_connector(url: str, connect_timeout: float, statement_timeout: float) -> Connector:
    """Return the connector for these arguments. Engines in this process with the same arguments share one connector.

    gunicorn's master connects before it forks the workers, so the workers inherit the connector and its state.
    """
    return Connector(url, connect_timeout, statement_timeout)


@cache
def _log_rejected_limits(_database: str) -> None:
    """Log that a pooler rejects the startup parameters that set the timeouts.

    The cache limits this to one line per database. Migrations use a second connector for the same database, so logging
    once per connector would repeat the line.
    """
    log.info("a pooler rejects startup parameters: each transaction sets its own timeouts")


def get_driver_connection(connection: PoolProxiedConnection | ConnectionPoolEntry) -> asyncpg.Connection:
    """Return the underlying asyncpg connection."""
    return connection.driver_connection  # type: ignore[return-value]  # the engine is for PostgreSQL


def _is_read_only(connection: asyncpg.Connection) -> bool:
    """Return whether the server was read-only according to its last report. PgBouncer may report an outdated state."""
    reported = connection.get_settings()
    return "on" in (getattr(reported, "in_hot_standby", ""), getattr(reported, "default_transaction_read_only", ""))


def needs_cancel(connection: PoolProxiedConnection, error: BaseException) -> bool:
    """Return whether the connection must be closed gracefully, so that asyncpg cancels the statement.

    If the connection has no timeout on the server, a statement may keep running after the driver's timeout. Terminating
    the connection would not cancel the statement.
    """
    return isinstance(error, TimeoutError) and not connection.info["has_server_limits"]
