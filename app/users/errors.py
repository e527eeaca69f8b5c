"""The errors of users."""

from app.errors import Conflict, NotFound, PermissionDenied, RuleViolated


class EmailTaken(RuleViolated):
    message = "Email already registered"


class WrongPassword(RuleViolated):
    message = "Incorrect current password"


class RegistrationClosed(PermissionDenied):
    message = "Registration is closed"


class UserNotFound(NotFound):
    message = "User not found"


class LastSuperuser(Conflict):
    message = "The last active superuser cannot be deleted, deactivated or demoted"
