"""The list of features."""

from fastapi import FastAPI

from app import PREFIX
from app.accounts.mails import mail_writers
from app.accounts.router import router as accounts
from app.auth.router import router as auth
from app.errors import InternalError, PayloadTooLarge, RateLimited, ServiceUnavailable, UnknownHost, responses
from app.health.router import router as health
from app.settings import Settings
from app.users.router import router as users

# Features that cannot be disabled.
ROUTERS = [
    users,
    auth,
]
# The tags that group the routes in the API documentation, one per feature.
TAGS = [
    {"name": "auth", "description": "Log in, refresh tokens, log out, list and end sessions"},
    {"name": "users", "description": "Registration, the current user, and administration by superusers"},
    {
        "name": "accounts",
        "description": "Forgotten passwords, verified email addresses and invitations, by email. A request for an "
        "email returns 202, whether or not there is such an account. The link in the email contains a token, which "
        "works once and for a limited time. The routes `/confirm` take it.",
    },
    {"name": "health", "description": "Health checks for orchestrators and load balancers"},
]
# The errors that every route except the health checks can return.
COMMON_ERRORS = (UnknownHost, PayloadTooLarge, RateLimited, InternalError, ServiceUnavailable)


def add_routers(app: FastAPI) -> None:
    """Add the routes and the email writers of every feature to the application.

    An email writer is a function that writes one kind of email. `app.state.mail_writers` contains one factory for each
    feature that sends emails. At startup, the lifespan calls each factory with the settings to get the email writers of
    the feature.
    """
    for router in ROUTERS:
        app.include_router(router, prefix=PREFIX, responses=responses(*COMMON_ERRORS))
    settings: Settings = app.state.settings
    app.state.mail_writers = []
    if settings.mail:
        app.include_router(accounts, prefix=PREFIX, responses=responses(*COMMON_ERRORS))
        app.state.mail_writers.append(mail_writers)
    app.include_router(health, prefix=PREFIX, responses=responses(PayloadTooLarge, InternalError))
