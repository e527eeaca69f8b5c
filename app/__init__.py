"""A user management API with JWT logins and health checks, and the server that runs it."""

TITLE = "FastAPI Application"
# Used as the name of processes, as the application name of database connections, and as the issuer of tokens.
NAME = "fastapi-app"
PREFIX = ""  # prepended to every path, for example "/v1"
__version__ = "0.1.0"
