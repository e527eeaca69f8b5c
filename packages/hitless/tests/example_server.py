"""How to start the example application on hitless."""

import os
from pathlib import Path

HERE = Path(__file__).parent
# gunicorn's arguments, and the environment in which it can import them.
EXAMPLE = ("example_app:app", f"--config={HERE / 'example_conf.py'}")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(HERE)}
