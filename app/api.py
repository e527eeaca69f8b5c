"""The list of features."""

from fastapi import APIRouter

from app.auth.router import router as auth
from app.health.router import router as health
from app.users.router import router as users

router = APIRouter()
router.include_router(auth)
router.include_router(users)
router.include_router(health)

# What the API's documentation says of each.
TAGS = [
    {"name": "auth", "description": "Log in, refresh, log out"},
    {"name": "users", "description": "Registration, your own account, and administration by superusers"},
    {"name": "health", "description": "Probes for whatever restarts the process or sends it traffic"},
]
