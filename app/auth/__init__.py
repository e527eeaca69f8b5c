"""Authentication: login, and refresh tokens that rotate."""
