"""gunicorn's arguments and environment for the example application."""

import os
from pathlib import Path

HERE = Path(__file__).parent
# gunicorn's arguments, and an environment that lets gunicorn import the modules named in them.
EXAMPLE = ("example_app:app", f"--config={HERE / 'example_conf.py'}")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(HERE)}
