"""The errors of the accounts feature."""

from app.errors import AuthenticationFailed, RuleViolated


class InvalidMailToken(RuleViolated):
    message = "The link is not valid any more, request another one"


class IncorrectPassword(AuthenticationFailed):
    # Respond with 401 instead of the 400 of `WrongPassword` in app/users. After a 400, the page behind the link in the
    # email (account.js) would not let the user try another password.
    message = "Incorrect password"
