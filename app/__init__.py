"""A user-management API: users, JWT login, health checks, and the server that runs it."""

__version__ = "0.1.0"
