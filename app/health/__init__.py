"""Health checks: whether the process must be restarted, and whether it can be sent traffic."""
