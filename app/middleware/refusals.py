"""Render the responses to requests that the server rejects before they reach any middleware."""

import hitless

from app.errors import ErrorResponse
from app.middleware.security_headers import strict_headers


def render_refusal(*, hsts: bool) -> hitless.RenderRefusal:
    """Return a function that renders the response to a rejected request.

    The response has the API's error format, and includes security headers.
    """
    headers = [(b"content-type", b"application/json"), *strict_headers(hsts=hsts)]

    def render(refusal: hitless.Refusal) -> hitless.RefusalResponse:
        body = ErrorResponse(error=refusal.message, type=refusal.type)
        return hitless.RefusalResponse(headers, body.model_dump_json(exclude_none=True).encode())

    return render
