"""The errors of the users feature."""

from app.errors import Conflict, NotFound, PermissionDenied, RuleViolated


class EmailTaken(RuleViolated):
    message = "Email already registered"


class WrongPassword(RuleViolated):
    # The status is 400, unlike the 401 of a failed login. The access token is valid, but after a 401, clients would log
    # out.
    message = "Incorrect current password"


class RegistrationClosed(PermissionDenied):
    message = "Registration is closed"


class UserNotFound(NotFound):
    message = "User not found"


class LastSuperuser(Conflict):
    message = "The last active superuser cannot be deleted, deactivated or demoted"
