"""The gunicorn.conf.py for the test suite of uvicorn-worker."""

import hitless

on_starting, when_ready, pre_fork, child_exit = hitless.hooks()
