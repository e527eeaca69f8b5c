"""How workers share the connections that clients keep.

All workers accept from the same sockets. By itself one that is awake when a proxy opens its connections takes them all
before another wakes up, and has the work of all for as long as they are kept: with two workers, 40 % fewer requests a
second. So each says how many it has, and one that has far more than another stands back.
"""

import asyncio
import contextlib
import logging
import socket
from mmap import mmap

from uvicorn import Config, Server

log = logging.getLogger("uvicorn.error")

# A worker has too many connections when they are twice as many as another's, and so many more. Fewer would have workers
# stand back under short connections too, of which they take as many as they can serve by themselves.
TOLERANCE = 8
# How many a worker accepts in one turn of its loop. With more, the others would get fewer; with one alone, who comes to
# a busy worker would wait for as many of its turns as others have come before.
AT_ONCE = 8
# How long a worker stands back, in seconds. While another has few because it is stuck, the rest accept one in as much.
MOMENT = 0.001
# Likewise, where the system has no file or no memory for another connection.
EXHAUSTED_SECONDS = 1.0

# The connections of each worker and one more, 0 where none accepts: memory that all share, as it is made in the master.
# Should two workers have one place in it, they share less evenly.
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
        self.arriving = set[asyncio.Task[None]]()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the lifespan, then accepts from the sockets."""
        await super().startup([])
        self.listeners = sockets or []
        self._listen()

    async def on_tick(self, counter: int) -> bool:
        """Says ten times a second how many connections there are."""
        self.count()
        return await super().on_tick(counter)

    def count(self) -> int:
        """Gives the number of connections, and says it to the others."""
        connections = len(self.server_state.connections) + len(self.arriving)
        CONNECTIONS[self.number % len(CONNECTIONS)] = connections + 1
        return connections

    def accept_what_waits(self) -> None:
        """Accepts all that waits in the listeners' queue, as far as there are files for it."""
        for listener in self.listeners:
            while self._accept(listener):
                pass

    async def wait_for_handshakes(self, seconds: float) -> None:
        """Waits until all who are accepted have begun, with TLS where that is on, but not longer than that."""
        if self.arriving:
            await asyncio.wait(self.arriving, timeout=seconds)

    def stop_listening(self) -> None:
        """Leaves what waits in the listeners' queue, and what comes, to the other workers."""
        forget(self.number)
        for listener in self.listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        self.listeners = []

    def _listen(self) -> None:
        for listener in self.listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept_some, listener)

    def _stand_back(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        for listener in self.listeners:
            loop.remove_reader(listener)
        loop.call_later(seconds, self._listen)

    def _accept_some(self, listener: socket.socket) -> None:
        for _ in range(AT_ONCE):
            if not self._accept(listener):
                return
            # There is a least, except where a worker that has just ended had this one's number.
            if self.count() >= 2 * (min(filter(None, CONNECTIONS), default=1) - 1) + TOLERANCE:
                self._stand_back(MOMENT)
                return

    def _accept(self, listener: socket.socket) -> bool:
        """Accepts a connection, and says whether there was one."""
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionError):  # another worker was faster, or the client has left
            return False
        except OSError as error:
            log.warning("No connection is accepted for %d s: %s", EXHAUSTED_SECONDS, error)
            self._stand_back(EXHAUSTED_SECONDS)
            return False
        connection.setblocking(False)
        task = asyncio.create_task(self._begin(connection))
        self.arriving.add(task)
        task.add_done_callback(self.arriving.discard)
        return True

    async def _begin(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client has left, or does not speak TLS
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection, ssl=self.config.ssl)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]  # as Uvicorn does it
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
