"""Email: an outbox in the database, and a background task that sends its emails."""
