"""Annotated types that give a route the project in its path, if the current user may access it."""

from typing import Annotated

from fastapi import Depends

from app.dependencies import ReadSession
from app.errors import PermissionDenied
from app.projects.models import MemberRole, Project
from app.projects.service import get_project
from app.schemas import Id
from app.users.dependencies import CurrentUser
from app.users.models import UserRecord


async def get_current_staff(user: CurrentUser) -> UserRecord:
    """Return the current user, who must be a member of staff or a superuser.

    Raises:
        PermissionDenied: The user is neither.
    """
    if not (user.is_staff or user.is_superuser):
        raise PermissionDenied
    return user


async def get_readable_project(project_id: Id, user: CurrentUser, session: ReadSession) -> Project:
    """Return the project if the current user belongs to it, is on the staff, or is a superuser.

    Raises:
        ProjectNotFound: There is no such project.
        PermissionDenied: The user may not read it.
    """
    project = await get_project(session, project_id)
    if not (user.is_staff or user.is_superuser or project.role_of(user.id)):
        raise PermissionDenied
    return project


async def get_own_project(project_id: Id, user: CurrentUser, session: ReadSession) -> Project:
    """Return the project if the current user is one of its owners.

    Raises:
        ProjectNotFound: There is no such project.
        PermissionDenied: The user is not an owner.
    """
    project = await get_project(session, project_id)
    if project.role_of(user.id) is not MemberRole.OWNER:
        raise PermissionDenied
    return project


CurrentStaff = Annotated[UserRecord, Depends(get_current_staff)]
ReadableProject = Annotated[Project, Depends(get_readable_project)]
OwnProject = Annotated[Project, Depends(get_own_project)]
