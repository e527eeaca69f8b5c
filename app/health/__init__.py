"""Health checks, for whatever restarts the process and whatever sends it traffic."""
