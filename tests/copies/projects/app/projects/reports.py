"""A sub-application for reports, which is mounted into the API."""

from fastapi import FastAPI

from app.dependencies import ReadSession
from app.projects import service
from app.projects.dependencies import CurrentStaff
from app.projects.models import Status

reports = FastAPI(title="Reports", openapi_url=None, redirect_slashes=False)


@reports.get("/projects")
async def count_projects(_: CurrentStaff, session: ReadSession) -> dict[Status, int]:
    """Return the number of projects with each status."""
    return await service.count_projects(session)
