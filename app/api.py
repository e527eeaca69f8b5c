"""The list of features."""

from fastapi import FastAPI

from app import PREFIX
from app.auth.router import router as auth
from app.errors import InternalError, PayloadTooLarge, RateLimited, ServiceUnavailable, UnknownHost, responses
from app.health.router import router as health
from app.users.router import router as users

# The features besides the health checks.
ROUTERS = [
    users,
    auth,
]
# What the API's documentation says about each feature.
TAGS = [
    {"name": "auth", "description": "Log in, refresh tokens, log out"},
    {"name": "users", "description": "Registration, the current user, and administration by superusers"},
    {"name": "health", "description": "Health checks for orchestrators and load balancers"},
]
# The errors that any route but a health check can return.
COMMON_ERRORS = (UnknownHost, PayloadTooLarge, RateLimited, InternalError, ServiceUnavailable)


def add_routers(app: FastAPI) -> None:
    """Add the routes of every feature to the application."""
    for router in ROUTERS:
        app.include_router(router, prefix=PREFIX, responses=responses(*COMMON_ERRORS))
    app.include_router(health, prefix=PREFIX, responses=responses(PayloadTooLarge, InternalError))
