"""The errors of the accounts feature."""

from app.errors import AuthenticationFailed, RuleViolated


class InvalidMailToken(RuleViolated):
    message = "The link is not valid any more, request another one"


class IncorrectPassword(AuthenticationFailed):
    # The status is 401, unlike the 400 of `WrongPassword` in app/users. After a 400, the page that the email links to
    # (account.js) would not let the user try another password.
    message = "Incorrect password"
