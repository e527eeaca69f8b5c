"""Lets a client's address make only so many requests in a time."""

from collections.abc import Collection, Mapping
from ipaddress import IPv6Address

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import RateLimited, error_response
from app.limiter import RateLimiter
from app.middleware.paths import route_path, section

_IPV6_HOST_BITS = 64


class RateLimitMiddleware:
    """Counts before anything of the body is read, and says in each response what is left.

    `limits` names the limit of a method and path that has one of its own, all others share `default`. In `unlimited`
    sections nothing is counted.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Mapping[tuple[str, str], str], default: str, unlimited: Collection[str]
    ) -> None:
        self.app = app
        self.limits = limits
        self.default = default
        self.unlimited = unlimited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or section(path := route_path(scope)) in self.unlimited:
            await self.app(scope, receive, send)
            return

        limiter: RateLimiter = scope["state"]["limiter"]
        usage = await limiter.hit(self.limits.get((scope["method"], path), self.default), _client(scope))
        if usage is None:
            await self.app(scope, receive, send)
            return
        if usage.is_exceeded:
            await error_response(RateLimited, headers=usage.headers())(scope, receive, send)
            return
        headers = [(name.lower().encode(), value.encode()) for name, value in usage.headers().items()]

        async def send_with_headers(message: Message) -> None:
            # A 429 from further inside names the limit that it is about.
            if message["type"] == "http.response.start" and message["status"] != RateLimited.status:
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _client(scope: Scope) -> str:
    """Whom to count: the address that the server has found, which is the proxy's word only where that is trusted.

    Whoever has one IPv6 address mostly has all of its /64 network.
    """
    host: str = scope["client"][0] if scope["client"] else ""
    if ":" not in host:
        return host
    try:
        address = IPv6Address(host)
    except ValueError:  # a proxy may pass on whatever it likes
        return host
    return str(address.ipv4_mapped or int(address) >> _IPV6_HOST_BITS)
