"""Limit the number of requests per client IP address."""

from collections.abc import Collection, Mapping
from ipaddress import IPv6Address

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import RateLimited, error_response
from app.limiter import RateLimiter
from app.middleware.paths import route_path, section

_IPV6_HOST_BITS = 64


class RateLimitMiddleware:
    """Counts each request before its body is read, and adds the remaining quota to its response.

    `limits` maps a method and path to the name of its limit. All others share the limit named `default`. Paths under
    `exempt` are not counted.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Mapping[tuple[str, str], str], default: str, exempt: Collection[str]
    ) -> None:
        self.app = app
        self.limits = limits
        self.default = default
        self.exempt = exempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or section(path := route_path(scope)) in self.exempt:
            await self.app(scope, receive, send)
            return

        limiter: RateLimiter = scope["state"]["limiter"]
        usage = await limiter.hit(self.limits.get((scope["method"], path), self.default), _client_key(scope))
        if usage.is_exceeded:
            await error_response(RateLimited, headers=usage.headers())(scope, receive, send)
            return
        headers = [(name.lower().encode(), value.encode()) for name, value in usage.headers().items()]

        async def send_with_headers(message: Message) -> None:
            # A 429 from the route is about another limit, and has its headers.
            if message["type"] == "http.response.start" and message["status"] != RateLimited.status:
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _client_key(scope: Scope) -> str:
    """Return the client's IPv4 address, or its IPv6 /64 network, which usually belongs to one client."""
    host: str = scope["client"][0] if scope["client"] else ""
    if ":" not in host:
        return host
    try:
        address = IPv6Address(host)
    except ValueError:  # a proxy may send any string
        return host
    return str(address.ipv4_mapped or int(address) >> _IPV6_HOST_BITS)
