"""Health checks: liveness (must the process be restarted?) and readiness (can it receive traffic?)."""
