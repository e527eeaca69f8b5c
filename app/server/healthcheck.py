"""Exits with 0 if the server in this container answers 200 at /health: the image's HEALTHCHECK, with no curl."""

import http.client
import os
import ssl
import sys
from http import HTTPStatus

SECONDS = 10


def main() -> None:
    """Asks where gunicorn.conf.py listens, in its own protocol.

    PORT and SSL_CERTFILE are read from the container's environment alone, not from files as the settings are: to load
    all of those would take a second of CPU time, each time.
    """
    port = int(os.getenv("PORT") or "8000")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    if os.getenv("SSL_CERTFILE"):
        # Whether the certificate is right for the outside is not asked here, where the name is 127.0.0.1.
        context = ssl._create_unverified_context()  # noqa: S323, SLF001  public in all but name, PEP 476
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=SECONDS, context=context)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"/health does not answer: {error}")
    if status != HTTPStatus.OK:
        sys.exit(f"/health answers {status}")


if __name__ == "__main__":
    main()
