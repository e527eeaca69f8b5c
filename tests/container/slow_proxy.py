"""A TCP proxy that delays data in both directions. SIGUSR1 switches the delay on and off.

Usage: `python slow_proxy.py HOST PORT SECONDS`. The proxy listens on the same port number that it forwards to.
"""

import asyncio
import signal
import sys
from contextlib import suppress

HOST, PORT, SECONDS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
is_slow = False


def toggle() -> None:
    """Switch the delay on or off."""
    global is_slow  # noqa: PLW0603  there is one proxy per process
    is_slow = not is_slow


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward data in one direction until the sender closes its connection."""
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            await asyncio.sleep(SECONDS if is_slow else 0)
            writer.write(data)
    writer.close()


async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward data between a client and the server in both directions."""
    try:
        server_reader, server_writer = await asyncio.open_connection(HOST, PORT)
    except OSError:
        writer.close()
        return
    await asyncio.gather(forward(reader, server_writer), forward(server_reader, writer))


async def main() -> None:
    """Accept connections until the process is killed."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, toggle)
    async with await asyncio.start_server(connect, "0.0.0.0", PORT) as server:  # noqa: S104  runs in a container
        await server.serve_forever()


asyncio.run(main())
