"""Allow pages of other origins to call the API."""

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware as StarletteCORSMiddleware
from starlette.responses import Response

from app.errors import RuleViolated, error_response


class PreflightRejected(RuleViolated):
    message = "Not allowed from this origin"


class CORSMiddleware(StarletteCORSMiddleware):
    """Starlette's CORS middleware, except that rejected preflight requests get a response in the API's error format."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Respond to a preflight request."""
        response = super().preflight_response(request_headers)
        if response.status_code == HTTPStatus.OK:
            return response
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return error_response(PreflightRejected, headers=headers)
