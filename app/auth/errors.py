"""The errors of the authentication feature."""

from app import PREFIX
from app.errors import AuthenticationFailed, NotFound, PermissionDenied


class LoginFailed(AuthenticationFailed):
    message = "Incorrect email or password"


class EmailNotVerified(PermissionDenied):
    message = f"Verify your email address first; POST {PREFIX}/auth/email-verification sends an email for it"


class SessionNotFound(NotFound):
    message = "Session not found"


class InvalidRefreshToken(AuthenticationFailed):
    message = "Invalid refresh token"
