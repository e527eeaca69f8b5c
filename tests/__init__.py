"""Import the application before any test, so that it does not read the developer's settings or `.env` file."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from pydantic import AliasChoices, AliasPath
from pydantic_settings import BaseSettings


def setting_groups(base: type[BaseSettings] = BaseSettings) -> Iterator[type[BaseSettings]]:
    """Yield every settings class, including subclasses of subclasses."""
    for group in base.__subclasses__():
        yield group
        yield from setting_groups(group)


def is_setting(name: str) -> bool:
    """Return whether any settings class reads this environment variable."""
    for group in setting_groups():
        config = group.model_config
        for field, info in group.model_fields.items():
            alias = info.validation_alias
            aliases = alias.choices if isinstance(alias, AliasChoices) else [alias or ""]
            names = [str(each.path[0]) if isinstance(each, AliasPath) else each for each in aliases]
            names.append(f"{config.get('env_prefix', '')}{field}")
            nested = [f"{each}{delimiter}" for each in names if (delimiter := config.get("env_nested_delimiter"))]
            if name.lower() in map(str.lower, names) or name.lower().startswith(tuple(map(str.lower, nested))):
                return True
    return False


_inherited = dict(os.environ)
os.environ.clear()
os.environ["SECRET_KEY"] = "only for this import, which warns if there is none"
with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
    import app.main  # noqa: F401
del os.environ["SECRET_KEY"]
os.environ.update({name: value for name, value in _inherited.items() if not is_setting(name)})
for _group in setting_groups():
    _group.model_config["env_file"] = _group.model_config["secrets_dir"] = None
