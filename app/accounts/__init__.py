"""Accounts by mail: password reset, email verification and invitations."""
