"""The errors of the accounts feature."""

from app.errors import AuthenticationFailed, RuleViolated


class InvalidMailToken(RuleViolated):
    message = "The link is not valid any more, request another one"


class IncorrectPassword(AuthenticationFailed):
    # 401, not 400 as for `WrongPassword` in app/users: after a 400, the page that the link opens (account.js) does not
    # let the user try another password.
    message = "Incorrect password"
