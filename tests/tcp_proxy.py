"""A TCP proxy in front of a server. Tests can make the proxy close connections, drop data or delay responses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

# `closed` closes connections, `silent` forwards nothing, and `slow` delays each response.
ProxyState = Literal["open", "closed", "silent", "slow"]


class TCPProxy:
    """Forward bytes between clients and a server.

    Attributes:
        address: The proxy's own address, `host:port`.
        sent: The data that clients have sent, one item per read. asyncpg and redis-py wait for a response before they
            send more data, so each item is a round trip.
        delay: How long each response is delayed in the state `slow`, in seconds.
    """

    def __init__(self, host: str, port: int) -> None:
        self.address = ""
        self.sent: list[bytes] = []
        self.delay = 1.2
        self._server = (host, port)
        self._state: ProxyState = "open"
        self._writers: list[asyncio.StreamWriter] = []

    async def handle_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect a client to the server, and forward data in both directions."""
        self._writers.append(writer)
        if self._state == "closed":
            writer.close()
            return
        server_reader, server_writer = await asyncio.open_connection(*self._server)
        self._writers.append(server_writer)
        with suppress(asyncio.CancelledError):  # raised when the test ends
            await asyncio.gather(
                self._forward_requests(reader, server_writer), self._forward_responses(server_reader, writer)
            )

    async def _forward_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                self.sent.append(data)
                if self._state != "silent":
                    writer.write(data)
        writer.close()

    async def _forward_responses(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if self._state == "slow":
                    await asyncio.sleep(self.delay)
                if self._state != "silent":
                    writer.write(data)
        writer.close()

    def set_state(self, state: ProxyState) -> None:
        """Change the state, for both new and open connections."""
        self._state = state
        if state == "closed":
            for writer in self._writers:
                writer.close()


@asynccontextmanager
async def tcp_proxy(host: str, port: int) -> AsyncIterator[TCPProxy]:
    """Run a TCP proxy in front of the server at the given host and port."""
    proxy = TCPProxy(host, port)
    server = await asyncio.start_server(proxy.handle_connection, "127.0.0.1", 0)
    proxy.address = "{}:{}".format(*server.sockets[0].getsockname())
    yield proxy
    server.close()
    proxy.set_state("closed")
    await server.wait_closed()
