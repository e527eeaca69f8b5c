"""Exit with status 0 if the server in this container responds to /health with 200.

The image runs this module as its HEALTHCHECK, because it has no curl.
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
    """Request /health. Use HTTPS if SSL_CERTFILE is set, as gunicorn.conf.py does.

    Read HOST, PORT and SSL_CERTFILE only from the environment, because loading all settings can take a second.
    """
    host, port = os.getenv("HOST") or "0.0.0.0", int(os.getenv("PORT") or "8000")  # noqa: S104  does not listen here
    # If HOST is `::`, connect to `localhost`, so that both ::1 and 127.0.0.1 are tried. On a system without IPv6, the
    # server can be reached only over IPv4.
    host = {"0.0.0.0": "127.0.0.1", "::": "localhost"}.get(host, host)  # noqa: S104  as above
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    if os.getenv("SSL_CERTFILE"):
        # Do not verify the certificate: it is issued for the public host name, not for this address.
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
