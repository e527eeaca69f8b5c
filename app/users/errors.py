"""The errors of the users feature."""

from app.errors import Conflict, NotFound, PermissionDenied, RuleViolated


class EmailTaken(RuleViolated):
    message = "Email already registered"


class WrongPassword(RuleViolated):
    # Respond with 400, although a failed login responds with 401. The access token is valid, and clients would log out
    # after a 401.
    message = "Incorrect current password"


class RegistrationClosed(PermissionDenied):
    message = "Registration is closed"


class UserNotFound(NotFound):
    message = "User not found"


class LastSuperuser(Conflict):
    message = "The last active superuser cannot be deleted, deactivated or demoted"
