"""Add security headers to every response."""

import re
from base64 import b64encode
from collections.abc import Collection
from hashlib import sha256

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.middleware.paths import RESPONSE_STARTS, is_below, route_path

_BASIC = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
# Two years, the max-age recommended for browsers' HSTS preload lists. `includeSubDomains` is omitted, because
# subdomains may belong to other services.
_HSTS = (b"strict-transport-security", b"max-age=63072000")
_NO_STORE = (b"cache-control", b"no-store")
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
# Swagger UI and ReDoc set inline styles and use `data:` images. ReDoc runs its search in a web worker.
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self'{}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def strict_headers(*, hsts: bool) -> list[tuple[bytes, bytes]]:
    """Return the security headers for responses that the server generates itself, without calling the application.

    With `hsts`, they include Strict-Transport-Security.
    """
    return [*_BASIC, *([_HSTS] if hsts else []), _NO_STORE, _POLICY]


class SecurityHeadersMiddleware:
    """Adds security headers to every response.

    Also forbids caching, unless the response has a Cache-Control header or its path is public.

    Args:
        app: The application.
        docs_pages: The paths of the documentation pages, which contain scripts.
        public: Paths with a trailing slash, such as `/docs/`. Responses for these paths and for paths below them
            may be cached.
        hsts: Whether to add a Strict-Transport-Security header to HTTPS responses.
    """

    def __init__(self, app: ASGIApp, *, docs_pages: Collection[str], public: tuple[str, ...], hsts: bool) -> None:
        self.app = app
        self.docs_pages = docs_pages
        self.public = public
        self.hsts = hsts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        path = route_path(scope)
        start: Message | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal start
            if message["type"] in RESPONSE_STARTS:
                headers = message["headers"] = [*message.get("headers", ()), *_BASIC]
                if self.hsts and scope["scheme"] in {"https", "wss"}:
                    headers.append(_HSTS)
                names = dict(headers)
                if b"cache-control" not in names and not is_below(path, self.public):
                    headers.append(_NO_STORE)
                if path in self.docs_pages:
                    start = message  # sent later, because the policy depends on the body
                    return
                if b"content-security-policy" not in names:
                    headers.append(_POLICY)
            elif start:
                start["headers"].append(_docs_policy(message["body"]))
                await send(start)
                start = None
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _docs_policy(page: bytes) -> tuple[bytes, bytes]:
    """Build a Content-Security-Policy header. It allows only those inline scripts that the page contains, by hash."""
    hashes = (b64encode(sha256(script).digest()).decode() for script in _INLINE_SCRIPT.findall(page))
    scripts = "".join(f" 'sha256-{digest}'" for digest in hashes)
    return b"content-security-policy", _DOCS_POLICY.format(scripts).encode()
