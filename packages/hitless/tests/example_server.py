"""The arguments and the environment with which gunicorn runs the example application."""

import os
from pathlib import Path

HERE = Path(__file__).parent
# The environment lets gunicorn import the modules named in its arguments.
EXAMPLE = ("example_app:app", f"--config={HERE / 'example_conf.py'}")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(HERE)}
