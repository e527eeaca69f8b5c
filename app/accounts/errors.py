"""The errors of accounts."""

from app.errors import AuthenticationFailed, RuleViolated


class InvalidToken(RuleViolated):
    message = "The link is not valid any more, request another one"


class IncorrectPassword(AuthenticationFailed):
    message = "Incorrect password"
