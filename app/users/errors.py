"""The errors of the users feature."""

from app.errors import Conflict, NotFound, PermissionDenied, RuleViolated


class EmailTaken(RuleViolated):
    message = "Email already registered"


class WrongPassword(RuleViolated):
    # Respond with 400, not with 401 as after a failed login. The access token is valid, but a 401 would make clients
    # log out.
    message = "Incorrect current password"


class RegistrationClosed(PermissionDenied):
    message = "Registration is closed"


class UserNotFound(NotFound):
    message = "User not found"


class LastSuperuser(Conflict):
    message = "The last active superuser cannot be deleted, deactivated or demoted"
