"""The application is imported here first, so that no test depends on the developer's environment or `.env` file."""

import contextlib
import os
import tempfile

from app.settings import Settings

for variable in [name for name in os.environ if name.lower() in Settings.model_fields]:
    del os.environ[variable]
os.environ["SECRET_KEY"] = "only for this import, which warns if there is none"
with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
    import app.main  # noqa: F401
del os.environ["SECRET_KEY"]
