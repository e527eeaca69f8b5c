"""The errors of the accounts feature."""

from app.errors import AuthenticationFailed, RuleViolated


class InvalidMailToken(RuleViolated):
    message = "The link is not valid any more, request another one"


class IncorrectPassword(AuthenticationFailed):
    # 401, unlike the 400 of `WrongPassword` in app/users: after a 400, the page that the link in the email opens
    # (account.js) does not let the user try another password.
    message = "Incorrect password"
