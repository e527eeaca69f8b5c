"""The errors of authentication."""

from app.errors import AuthenticationFailed


class LoginFailed(AuthenticationFailed):
    message = "Incorrect email or password"


class InvalidRefreshToken(AuthenticationFailed):
    message = "Invalid refresh token"
