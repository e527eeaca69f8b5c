"""The errors of accounts."""

from app.errors import AuthenticationFailed, RuleViolated


class InvalidMailToken(RuleViolated):
    message = "The link is not valid any more, request another one"


class IncorrectPassword(AuthenticationFailed):
    # Not 400, unlike WrongPassword of users: after a 400, the page of the link (account.js) accepts no other password.
    message = "Incorrect password"
