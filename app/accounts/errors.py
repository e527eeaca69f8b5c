"""The errors of the accounts feature."""

from app.errors import AuthenticationFailed, RuleViolated


class InvalidMailToken(RuleViolated):
    message = "The link is not valid any more, request another one"


class IncorrectPassword(AuthenticationFailed):
    # Respond with 401, unlike `WrongPassword` in app/users, which responds with 400. account.js, the script of the page
    # that verification emails link to, lets the user try again after a 401, but hides the form after a 400.
    message = "Incorrect password"
