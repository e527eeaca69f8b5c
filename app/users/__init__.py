"""Users: registration, the current user, administration."""
