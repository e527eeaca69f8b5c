"""Query the kernel about a connection."""

import array
import asyncio
import fcntl
import termios


def has_unread_bytes(transport: asyncio.BaseTransport) -> bool:
    """Return whether the client has sent bytes that the event loop has not read yet.

    uvloop runs timers before it reads from sockets. If the worker was busy, the timer for idle connections may run even
    though the next request has already arrived. Closing the connection at this point would lose the request.
    """
    if transport.is_closing():
        return False
    size = array.array("i", [0])
    fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, size)
    return size[0] > 0
