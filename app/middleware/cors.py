"""Lets the pages of named origins call the API."""

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware as StarletteCORSMiddleware
from starlette.responses import Response

from app.errors import RuleViolated, error_response


class PreflightRefused(RuleViolated):
    message = "Not allowed from this origin"


class CORSMiddleware(StarletteCORSMiddleware):
    """Starlette's own, but for a refusal in the errors' one format."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answers what a browser asks before it sends a request to another origin."""
        response = super().preflight_response(request_headers)
        if response.status_code == HTTPStatus.OK:
            return response
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return error_response(PreflightRefused, headers=headers)
