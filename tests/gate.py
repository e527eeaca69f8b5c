"""A way to a server that a test can shut, hold or make slow."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

State = Literal["open", "shut", "held", "slow"]
SLOW_SECONDS = 0.3


class Gate:
    """Passes on to a server what comes; or as if that were gone, hung, or needed 0.3 seconds for an answer.

    It keeps what clients send. Neither asyncpg nor redis-py sends again before the answer is there, so each time is a
    round trip.
    """

    def __init__(self, host: str, port: int) -> None:
        self.server = (host, port)
        self.address = ""
        self.state: State = "open"
        self.sent: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pipes both ways between a client and the server."""
        self.writers.append(writer)
        if self.state == "shut":
            writer.close()
            return
        server_reader, server_writer = await asyncio.open_connection(*self.server)
        self.writers.append(server_writer)
        with suppress(asyncio.CancelledError):  # the test is over
            await asyncio.gather(self.pipe(reader, server_writer), self.pipe(server_reader, writer, are_answers=True))

    async def pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, are_answers: bool = False
    ) -> None:
        """Passes on what comes, unless the gate is held, and the end."""
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if not are_answers:
                    self.sent.append(data)
                if self.state == "slow" and are_answers:
                    await asyncio.sleep(SLOW_SECONDS)
                if self.state != "held":
                    writer.write(data)
        writer.close()

    def turn(self, state: State) -> None:
        """Changes the gate; those inside are shut out too."""
        self.state = state
        if state == "shut":
            for writer in self.writers:
                writer.close()


@asynccontextmanager
async def gate_before(host: str, port: int) -> AsyncIterator[Gate]:
    """Opens a gate before a server; `address` is where it can be entered."""
    gate = Gate(host, port)
    server = await asyncio.start_server(gate.enter, "127.0.0.1", 0)
    gate.address = "{}:{}".format(*server.sockets[0].getsockname())
    yield gate
    server.close()
    gate.turn("shut")
    await server.wait_closed()
