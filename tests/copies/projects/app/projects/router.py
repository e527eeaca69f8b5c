"""The routes of projects."""

from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response, WebSocket, status
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy.ext.asyncio import AsyncSession

from app.dependencies import AppRequest, BodyStream, ReadSession, WriteSession
from app.errors import PermissionDenied, responses
from app.limiter import rate_limit
from app.pagination import Cursor, Limit, next_page_link, url_path
from app.projects import service
from app.projects.dependencies import OwnProject, ReadableProject, get_readable_project
from app.projects.errors import AlreadyMember, KeyTaken, ProjectNotFound
from app.projects.models import Member, Project, Status
from app.projects.schemas import (
    DocumentResponse,
    MemberCreate,
    MemberResponse,
    Money,
    ProjectCreate,
    ProjectPage,
    ProjectResponse,
    QueryDate,
)
from app.users.dependencies import CurrentUser
from app.users.errors import UserNotFound

router = APIRouter(prefix="/projects", tags=["projects"])

DOCUMENT_SIZE = 20 * 2**20
BINARY = {"schema": {"type": "string", "format": "binary"}}


@router.post(
    "/",
    status_code=status.HTTP_201_CREATED,
    response_model=ProjectResponse,
    responses=responses(KeyTaken) | {201: {"headers": {"Location": {"schema": {"type": "string"}}}}},
    response_description="The created project",
    summary="Create a project",
)
async def create_project(
    user: CurrentUser, session: WriteSession, data: ProjectCreate, request: Request, response: Response
) -> Project:
    """Create a project. The current user becomes its owner."""
    project = await service.create_project(session, user.id, data)
    response.headers["Location"] = f"{url_path(request)}{project.id}"
    return project


@router.get(
    "/",
    response_model=ProjectPage,
    responses={200: {"headers": {"Link": {"schema": {"type": "string"}}}}},
    response_description="One page of projects",
    summary="List projects",
)
async def list_projects(  # noqa: PLR0913  one argument per query parameter
    *,
    user: CurrentUser,
    session: ReadSession,
    request: Request,
    response: Response,
    limit: Limit = 50,
    cursor: Cursor = None,
    state: Annotated[Status | None, Query(alias="status", description="Only projects in this state")] = None,
    starts_after: Annotated[QueryDate | None, Query(description="Only projects that start later")] = None,
    min_budget: Annotated[Money | None, Query(description="Only projects with at least this budget")] = None,
    key: Annotated[UUID | None, Query(description="Only the project with this key")] = None,
) -> dict[str, object]:
    """List the projects of the current user, newest first. Staff and superusers see all projects."""
    member_id = None if user.is_staff or user.is_superuser else user.id
    where = service.Filter(member_id, state, starts_after, min_budget, key)
    projects, next_cursor = await service.list_projects(session, limit=limit, after=cursor, where=where)
    if next_cursor:
        response.headers["Link"] = next_page_link(request, next_cursor)
    return {"items": projects, "next_cursor": next_cursor}


@router.get(
    "/{project_id}",
    response_model=ProjectResponse,
    responses=responses(PermissionDenied, ProjectNotFound),
    response_description="The project",
    summary="Get a project",
)
async def read_project(project: ReadableProject) -> Project:
    """Return a project. Only its members, staff and superusers can call this endpoint."""
    return project


@router.post(
    "/{project_id}/members",
    status_code=status.HTTP_201_CREATED,
    response_model=MemberResponse,
    responses=responses(PermissionDenied, ProjectNotFound, UserNotFound, AlreadyMember),
    response_description="The new member",
    summary="Add a member",
)
@rate_limit("invite")
async def add_member(
    project: OwnProject, session: WriteSession, data: MemberCreate, tasks: BackgroundTasks, request: AppRequest
) -> Member:
    """Add a user to the project with a role, and notify the user. Only owners of the project can call this endpoint."""
    tasks.add_task(service.notify_member, request.state["engine"], project.id, data.user_id)
    return await service.add_member(session, project.id, data)


@router.put(
    "/{project_id}/document",
    responses=responses(PermissionDenied, ProjectNotFound),
    response_description="The size and the digest of the document",
    summary="Upload the document",
    max_body_size=DOCUMENT_SIZE,
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": BINARY}}},
)
async def upload_document(project: OwnProject, session: WriteSession, body: BodyStream) -> DocumentResponse:
    """Upload a document of at most 20 MiB. Only owners of the project can call this endpoint."""
    size, digest = 0, sha256()
    async for chunk in body:
        size += len(chunk)
        digest.update(chunk)
    await service.set_document(session, project.id, size, digest.digest())
    return DocumentResponse(size=size, sha256=digest.hexdigest())


@router.get(
    "/{project_id}/events",
    response_class=EventSourceResponse,
    responses=responses(PermissionDenied, ProjectNotFound),
    response_description="An event for each member, in order",
    summary="Follow a project",
)
async def follow_project(project: ReadableProject, request: AppRequest) -> AsyncIterator[ServerSentEvent]:
    """Send one event for each member of the project, then end the stream. Browsers reconnect after five seconds."""
    for user_id in [member.user_id for member in project.members]:
        # The request's session is already closed. Open a new session for each event, so that no connection is held
        # between events.
        async with AsyncSession(request.state["read_engine"]) as session:
            member = await session.get(Member, (project.id, user_id))
        if member:
            data = MemberResponse.model_validate(member)
            yield ServerSentEvent(event="member", id=str(user_id), data=data, retry=5000)


@router.websocket("/{project_id}/chat")
async def chat(
    websocket: WebSocket, request: AppRequest, project: ReadableProject, user: CurrentUser, session: ReadSession
) -> None:
    """Echo each message with its author's id. Only members of the project, staff and superusers can connect."""
    await session.close()  # return the connection to the pool, because a WebSocket may stay open for hours
    await websocket.accept()
    while True:
        text = await websocket.receive_text()
        async with AsyncSession(request.state["read_engine"]) as message_session:
            await get_readable_project(project.id, user, message_session)  # raises if the user is no longer a member
        await websocket.send_json({"project": project.id, "user": user.id, "text": text})
