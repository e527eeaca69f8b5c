"""The list of features."""

from fastapi import APIRouter

from app.auth.router import router as auth
from app.health.router import router as health
from app.users.router import router as users

router = APIRouter()
router.include_router(auth)
router.include_router(users)
router.include_router(health)
