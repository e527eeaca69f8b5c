"""Authentication: login, and rotation of refresh tokens."""
