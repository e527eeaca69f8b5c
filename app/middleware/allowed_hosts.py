"""Reject requests whose Host header is not an allowed name."""

import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import UnknownHost, error_response
from app.middleware.paths import is_below, route_path

# A name, an IPv4 address, or an IPv6 address in brackets, with an optional port. Anything else is rejected. Otherwise,
# `evil.example/.example.com` would count as a subdomain of example.com.
_HOST = re.compile(rb"([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]*)?")


class AllowedHostsMiddleware:
    """Allows only the given host names; `*.example.com` allows every subdomain of example.com.

    Requests to the paths in `exempt`, and to paths below them, may have any Host header, because health checks connect
    by IP address. Starlette's TrustedHostMiddleware has no exemptions, and accepts several Host headers.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], exempt: tuple[str, ...]) -> None:
        self.app = app
        self.names = {host.encode() for host in hosts if not host.startswith("*")}
        self.suffixes = tuple(host[1:].encode() for host in hosts if host.startswith("*"))
        self.exempt = exempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_allowed(scope) or is_below(route_path(scope), self.exempt):
            await self.app(scope, receive, send)
        else:
            await error_response(UnknownHost)(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        # Reject requests with several Host headers. A proxy may have checked a different one than this service uses.
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not (match := _HOST.fullmatch(hosts[0].lower())):
            return False
        return match[1] in self.names or match[1].endswith(self.suffixes)
