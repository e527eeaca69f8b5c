"""The errors of projects."""

from app.errors import Conflict, NotFound


class ProjectNotFound(NotFound):
    message = "Project not found"


class KeyTaken(Conflict):
    message = "The key is taken"


class AlreadyMember(Conflict):
    message = "Already a member"
