"""A user-management API: users, JWT login, health checks, and the server that runs it."""

TITLE = "FastAPI Application"
NAME = "fastapi-app"  # names the processes, the database connections and the tokens
PREFIX = ""  # of all paths, such as "/v1"
__version__ = "0.1.0"
