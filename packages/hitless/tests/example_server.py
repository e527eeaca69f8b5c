"""gunicorn's arguments and environment for the example application."""

import os
from pathlib import Path

HERE = Path(__file__).parent
# The environment lets gunicorn import the example's modules.
EXAMPLE = ("example_app:app", f"--config={HERE / 'example_conf.py'}")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(HERE)}
