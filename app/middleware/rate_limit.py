"""Limit the number of requests per client IP address."""

from collections.abc import Sequence
from ipaddress import IPv6Address
from re import Pattern

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import RateLimited, error_response
from app.limiter import RateLimiter
from app.middleware.paths import RESPONSE_STARTS, WEBSOCKET, find_option, is_below, list_options, route_path

_IPV6_HOST_BITS = 64


def list_rate_limits(routes: Sequence[BaseRoute]) -> list[tuple[str, Pattern[str], str]]:
    """Return the method, path pattern and rate limit name for each method of each route."""
    return list_options(routes, lambda route: getattr(route.endpoint, "rate_limit", None), "default")


class RateLimitMiddleware:
    """Counts each request before its body is read, and adds the remaining quota to the response headers.

    A WebSocket handshake is counted as a request.

    Args:
        app: The next application.
        routes: The routes. Those decorated with `rate_limit` have their own limits. All others share the default limit.
        exempt: Paths with a trailing slash, such as `/health/`. Requests to these paths and to paths below them are not
            counted.
    """

    def __init__(self, app: ASGIApp, *, routes: list[BaseRoute], exempt: tuple[str, ...]) -> None:
        self.app = app
        self.exempt = exempt
        self.limits = list_rate_limits(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_below(path := route_path(scope), self.exempt):
            await self.app(scope, receive, send)
            return

        limiter: RateLimiter = scope["state"]["limiter"]
        name = find_option(self.limits, scope.get("method", WEBSOCKET), path, "default")
        usage = await limiter.hit(name, client_key(scope))
        if usage.is_exceeded:
            await error_response(RateLimited, headers=usage.headers())(scope, receive, send)
            return
        scope["rate_limit"] = name  # for the access log
        headers = [(name.lower().encode(), value.encode()) for name, value in usage.headers().items()]

        async def send_with_headers(message: Message) -> None:
            # If the route itself responded with 429, do not add headers. The route has checked a different limit, and
            # has already added the headers for that limit.
            if message["type"] in RESPONSE_STARTS and message.get("status") != RateLimited.status:
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        await self.app(scope, receive, send_with_headers)


def client_key(scope: Scope) -> str:
    """Return the client's IPv4 address, or its IPv6 /64 network, which usually belongs to one client."""
    host: str = scope["client"][0] if scope["client"] else ""
    if ":" not in host:
        return host
    try:
        address = IPv6Address(host)
    except ValueError:  # a proxy may send any string
        return host
    return str(address.ipv4_mapped or int(address) >> _IPV6_HOST_BITS)
