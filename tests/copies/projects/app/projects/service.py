"""Operations on projects. The caller opens and commits the session."""

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import selectinload

from app.database import is_unique_violation, utc_now
from app.pagination import encode_cursor
from app.projects.errors import AlreadyMember, KeyTaken, ProjectNotFound
from app.projects.models import Member, MemberRole, Project, Status
from app.projects.schemas import MemberCreate, ProjectCreate
from app.users.errors import UserNotFound


@dataclass(frozen=True)
class Filter:
    """Conditions that listed projects must meet. A condition that is None is not applied."""

    member_id: int | None
    status: Status | None
    starts_after: date | None
    min_budget: Decimal | None
    key: UUID | None


async def create_project(session: AsyncSession, owner_id: int, data: ProjectCreate) -> Project:
    """Create a project with its first owner.

    Raises:
        KeyTaken: Another project already uses this key.
    """
    project = Project(
        **data.model_dump(exclude={"budget", "tags"}),
        budget_cents=int(data.budget * 100),
        tags=sorted(data.tags),
        members=[Member(user_id=owner_id, role=MemberRole.OWNER)],
    )
    session.add(project)
    try:
        await session.flush()
    except IntegrityError as error:
        if is_unique_violation(error, "projects.key"):
            raise KeyTaken from error
        raise
    return project


async def list_projects(
    session: AsyncSession, *, limit: int, after: int | None, where: Filter
) -> tuple[list[Project], str | None]:
    """Return a page of projects, newest first, and the cursor for the next page."""
    query = select(Project).options(selectinload(Project.members)).order_by(Project.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(Project.id < after)
    if where.member_id is not None:
        query = query.where(Project.members.any(Member.user_id == where.member_id))
    if where.status is not None:
        query = query.where(Project.status == where.status)
    if where.starts_after is not None:
        query = query.where(Project.starts_on > where.starts_after)
    if where.min_budget is not None:
        query = query.where(Project.budget_cents >= int(where.min_budget * 100))
    if where.key is not None:
        query = query.where(Project.key == where.key)
    projects = list(await session.scalars(query))
    next_cursor = encode_cursor(projects[limit - 1].id) if len(projects) > limit else None
    return projects[:limit], next_cursor


async def get_project(session: AsyncSession, project_id: int) -> Project:
    """Return a project with its members.

    Raises:
        ProjectNotFound: There is no such project.
    """
    query = select(Project).where(Project.id == project_id).options(selectinload(Project.members))
    if project := await session.scalar(query):
        return project
    raise ProjectNotFound


async def add_member(session: AsyncSession, project_id: int, data: MemberCreate) -> Member:
    """Make a user a member of a project.

    Raises:
        AlreadyMember: The user is already a member.
        UserNotFound: There is no such user.
    """
    if await session.get(Member, (project_id, data.user_id)):
        raise AlreadyMember
    member = Member(project_id=project_id, user_id=data.user_id, role=data.role)
    session.add(member)
    try:
        await session.flush()
    except IntegrityError as error:
        # A concurrent request may have added the member or deleted the user.
        is_member = is_unique_violation(error, "project_members.project_id", "project_members.user_id")
        raise (AlreadyMember if is_member else UserNotFound) from error
    return member


async def notify_member(engine: AsyncEngine, project_id: int, user_id: int) -> None:
    """Notify a user of an invitation. This runs after the response, so it opens its own session."""
    async with AsyncSession(engine) as session, session.begin():
        member = update(Member).where(Member.project_id == project_id, Member.user_id == user_id)
        await session.execute(member.values(notified_at=utc_now()))


async def set_document(session: AsyncSession, project_id: int, size: int, sha256: bytes) -> None:
    """Store the size and the SHA-256 digest of a project's document."""
    document = update(Project).where(Project.id == project_id)
    await session.execute(document.values(document_size=size, document_sha256=sha256))


async def count_projects(session: AsyncSession) -> dict[Status, int]:
    """Return the number of projects with each status."""
    rows = await session.execute(select(Project.status, func.count()).group_by(Project.status))
    return dict.fromkeys(Status, 0) | dict(rows.all())
