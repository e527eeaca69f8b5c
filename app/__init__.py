"""A user management API with JWT logins and health checks, and the server that runs it."""

TITLE = "FastAPI Application"
NAME = "fastapi-app"  # the name of the processes and the database connections, and the issuer of the tokens
PREFIX = ""  # prepended to every path, for example "/v1"
__version__ = "0.1.0"
