"""Users: registration, one's own account, administration."""
