"""Exit with 0 if the server in this container responds with 200 at /health.

It is the image's HEALTHCHECK, because the image has no curl.
"""

import http.client
import os
import ssl
import sys
from http import HTTPStatus

from app import PREFIX

PATH = f"{PREFIX}/health"
TIMEOUT = 10  # seconds


def main() -> None:
    """Request /health at the address and with the protocol that gunicorn.conf.py uses.

    HOST, PORT and SSL_CERTFILE are read from the environment only. Loading all settings would take a second.
    """
    host, port = os.getenv("HOST") or "0.0.0.0", int(os.getenv("PORT") or "8000")  # noqa: S104  not a server's
    # `localhost` is tried as ::1 and 127.0.0.1: without IPv6, a server on `::` is reachable only by IPv4.
    host = {"0.0.0.0": "127.0.0.1", "::": "localhost"}.get(host, host)  # noqa: S104  the same
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    if os.getenv("SSL_CERTFILE"):
        # The certificate is for the public host name, not for this address.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=context)
    try:
        connection.request("GET", PATH)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"{PATH} does not respond: {error}")
    if status != HTTPStatus.OK:
        sys.exit(f"{PATH} responds {status}")


if __name__ == "__main__":
    main()
