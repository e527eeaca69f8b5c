"""What the kernel knows about a connection."""

import array
import asyncio
import fcntl
import termios


def has_unread_bytes(transport: asyncio.BaseTransport) -> bool:
    """Return whether the client has sent bytes that the event loop has not read yet.

    uvloop runs timers before it reads, so a timer may find a connection idle whose next request has arrived while the
    worker was busy. Closing it now would reset the connection, and the request would be lost.
    """
    if transport.is_closing():
        return False
    size = array.array("i", [0])
    fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, size)
    return size[0] > 0
