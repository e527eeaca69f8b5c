"""How fast the service is, and how close that is to the limit; `python -m benchmarks` says so in one table."""
