"""Authentication: login, and rotating refresh tokens."""
