"""A user-management API: users, JWT login, health checks, and the server that runs it."""

TITLE = "FastAPI Application"
NAME = "fastapi-app"  # of its processes, its database connections and its tokens
PREFIX = ""  # of all paths, such as "/v1"
__version__ = "0.1.0"
