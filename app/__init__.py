"""A user management API with JWT logins and health checks, and the server that runs it."""

TITLE = "FastAPI Application"
# The name of the processes and the database connections, and the issuer of the tokens.
NAME = "fastapi-app"
PREFIX = ""  # prepended to every path, for example "/v1"
__version__ = "0.1.0"
