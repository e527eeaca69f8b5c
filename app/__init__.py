"""A user-management API: users, JWT login, health checks, and the server that runs it."""
