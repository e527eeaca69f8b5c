"""The application is imported here first, so that no test depends on the developer's environment or `.env` file."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from pydantic_settings import BaseSettings


def setting_names(base: type[BaseSettings] = BaseSettings) -> Iterator[str]:
    """Yield the environment variable of each setting in each class of settings, in lower case."""
    for group in base.__subclasses__():
        yield from (f"{group.model_config.get('env_prefix', '')}{name}".lower() for name in group.model_fields)
        yield from setting_names(group)


_inherited = dict(os.environ)
os.environ.clear()
os.environ["SECRET_KEY"] = "only for this import, which warns if there is none"
with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
    import app.main  # noqa: F401
del os.environ["SECRET_KEY"]
_settings = set(setting_names())
os.environ.update({name: value for name, value in _inherited.items() if name.lower() not in _settings})
