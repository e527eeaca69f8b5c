"""Password reset, email verification and invitations, by email."""
