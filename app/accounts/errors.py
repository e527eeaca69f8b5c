"""The errors of the accounts feature."""

from app.errors import AuthenticationFailed, RuleViolated


class InvalidMailToken(RuleViolated):
    message = "The link is not valid any more, request another one"


class IncorrectPassword(AuthenticationFailed):
    # Respond with 401, although `WrongPassword` in app/users responds with 400. After a 400, the page that the email
    # links to (account.js) would not let the user try another password.
    message = "Incorrect password"
