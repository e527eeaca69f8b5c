"""How workers share the connections that clients keep.

All workers accept from the same sockets. One that is awake when a proxy opens its connections takes them faster than
another wakes up; and has all their requests from then on, while the other has none: of two workers, 40 % less. So each
says how many it has, and one that has far more than another accepts nothing for a moment.
"""

import asyncio
import logging
import socket
from mmap import mmap

from uvicorn import Config, Server

log = logging.getLogger("uvicorn.error")

# How many connections more than twice as many as another's are too many. With fewer, workers would stand back for each
# other under short connections too, of which they take as many as they can serve by themselves.
TOLERANCE = 8
# How long a worker stands back. It is not longer, as the other may be too busy to come.
MOMENT_SECONDS = 0.001

# The connections of each worker and one more, 0 where none accepts. All share this memory with the master, as long as
# this module is loaded before the fork (`preload_app`). Should two workers have one place, they share less evenly.
CONNECTIONS = memoryview(mmap(-1, 4 * 256)).cast("I")


def forget(worker: int) -> None:
    """Forgets a worker that does not accept any more, by its number."""
    CONNECTIONS[worker % len(CONNECTIONS)] = 0


class BalancedServer(Server):
    """Uvicorn's server, as the worker of this number among others."""

    def __init__(self, config: Config, number: int) -> None:
        super().__init__(config)
        self.number = number
        self.listeners: list[socket.socket] = []
        self.is_sharing = True
        self.standing_back: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the lifespan, then accepts from the sockets."""
        await super().startup([])
        self.listeners = sockets or []
        await self._listen([listener.dup() for listener in self.listeners])

    async def on_tick(self, counter: int) -> bool:
        """Says ten times a second how many connections there are."""
        self._count()
        return await super().on_tick(counter)

    def stop_sharing(self) -> None:
        """Accepts whatever comes, as the last worker must, and counts for the others no more."""
        self.is_sharing = False
        forget(self.number)

    async def stop_listening(self) -> None:
        """Leaves what waits in the listeners' queue, and what comes, to the other workers."""
        self.listeners = []
        if self.standing_back:
            await self.standing_back
        for server in self.servers:
            server.close()

    async def _listen(self, sockets: list[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        for listener in sockets:
            server = await loop.create_server(
                self._protocol, sock=listener, ssl=self.config.ssl, backlog=self.config.backlog
            )
            self.servers.append(server)

    def _protocol(self) -> asyncio.Protocol:
        """What a connection is handled with that is just being accepted."""
        if self.is_sharing and not self.standing_back and self._has_too_many():
            self.standing_back = asyncio.create_task(self._stand_back())
        return self.config.http_protocol_class(  # type: ignore[call-arg]  # as Uvicorn does it
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    def _count(self) -> int:
        connections = len(self.server_state.connections)
        CONNECTIONS[self.number % len(CONNECTIONS)] = connections + 1
        return connections

    def _has_too_many(self) -> bool:
        connections = self._count()
        least = min(filter(None, CONNECTIONS)) - 1
        return connections >= 2 * least + TOLERANCE

    async def _stand_back(self) -> None:
        # An asyncio server cannot pause. It is closed, and another one made of the same sockets.
        try:
            sockets = [listener.dup() for listener in self.listeners]
            for server in self.servers:
                server.close()
            self.servers.clear()
            await asyncio.sleep(MOMENT_SECONDS)
            await self._listen(sockets)
        except OSError as error:
            log.warning("Too busy to share connections: %r", error)  # there are too many open files for another
        finally:
            self.standing_back = None
