"""The errors of the accounts feature."""

from app.errors import AuthenticationFailed, RuleViolated


class InvalidMailToken(RuleViolated):
    message = "The link is not valid any more, request another one"


class IncorrectPassword(AuthenticationFailed):
    # Respond with 401, unlike `WrongPassword` in app/users, which responds with 400. account.js, the script of the page
    # that verification emails link to, lets the user try again after a 401. It takes a 400 to mean that the link is no
    # longer valid, and hides the form.
    message = "Incorrect password"
