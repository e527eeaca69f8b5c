"""The gunicorn.conf.py for uvicorn-worker's suite."""

import hitless

on_starting, when_ready, pre_fork, child_exit = hitless.hooks()
