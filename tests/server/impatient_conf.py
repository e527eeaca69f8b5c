"""gunicorn.conf.py with less patience, for tests that do not wait as long as a service should."""

import runpy

from app.server import protocol as limits  # `protocol` would be a setting of gunicorn

from tests.conftest import ROOT

# The workers are forked, and have what is set here.
limits.REQUEST_SECONDS = 2
limits.UNREAD_SECONDS = 2

globals().update(runpy.run_path(f"{ROOT}/gunicorn.conf.py"))
