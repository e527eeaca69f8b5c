"""The list of features."""

from app.auth.router import router as auth
from app.health.router import router as health
from app.users.router import router as users

# What the API's documentation says of each.
TAGS = [
    {"name": "auth", "description": "Log in, refresh, log out"},
    {"name": "users", "description": "Registration, your own account, and administration by superusers"},
    {"name": "health", "description": "Probes for whatever restarts the process or sends it traffic"},
]

# Side by side, as FastAPI asks the routes of a router inside of another one three times whether they match; those first
# that are asked most often.
ROUTERS = (
    users,
    auth,
)
# The probes' routes become the application's own, with no router around them that FastAPI would search, twice: 10 µs
# less for a request that takes 45. `dependency_overrides` would do nothing for them, and they have no dependencies.
PROBES = health
