"""A line to another server that SIGUSR1 makes slow, and fast again: `python slow_line.py HOST PORT SECONDS`."""

import asyncio
import signal
import sys
from contextlib import suppress

HOST, PORT, SECONDS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
slow = False


def toggle() -> None:
    """Makes what comes from now on slow, or fast."""
    global slow  # noqa: PLW0603  there is one line
    slow = not slow


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carries what comes one way."""
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            await asyncio.sleep(SECONDS if slow else 0)
            writer.write(data)
    writer.close()


async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carries both ways; what comes back is carried at once."""
    try:
        far_reader, far_writer = await asyncio.open_connection(HOST, PORT)
    except OSError:
        writer.close()
        return
    await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))


async def main() -> None:
    """Serves until it is killed."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, toggle)
    async with await asyncio.start_server(connect, "0.0.0.0", PORT) as server:  # noqa: S104  in a container
        await server.serve_forever()


asyncio.run(main())
