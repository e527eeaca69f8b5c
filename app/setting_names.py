"""Warn about misspelled names of settings."""

from difflib import get_close_matches

from dotenv import dotenv_values

from app.settings import Settings

# Environment variables that are not settings but may be in a `.env` file, because the compose files and other programs
# use them.
COMPOSE_VARIABLES = {
    "DATABASE_OWNER_URL",
    "DB_MEMORY",
    "DB_PORT",
    "IMAGE",
    "MAIL_PORT",
    "POSTGRES_PASSWORD",
    "REDIS_PORT",
    "WEB_CPUS",
    "WEB_MEMORY",
    "WEB_NETWORK",
    "WEB_PORT",
}
OTHER_PREFIXES = ("COMPOSE_", "DOCKER_", "FASTAPI_", "GUNICORN_", "OTEL_", "PG", "PYTHON", "UV_", "UVICORN_")


def describe_unknown_names(settings: Settings) -> list[str]:
    """Return a warning for each unknown name in the `.env` files and SECRETS_DIR, such as a misspelled setting.

    Environment variables are not checked, because most of them belong to other programs.
    """
    names = [name for file in (".env", f".env.{settings.environment}") for name in dotenv_values(file)]
    if settings.secrets_dir.is_dir():
        files = [path.name for path in settings.secrets_dir.iterdir() if path.is_file()]
        names += [name for name in files if not name.startswith(".")]
    known = [name.upper() for name in Settings.model_fields]
    found = []
    for name in dict.fromkeys(map(str.upper, names)):
        if name not in known and name not in COMPOSE_VARIABLES and not name.startswith(OTHER_PREFIXES):
            nearest = get_close_matches(name, known, n=1)
            found.append(f"{name} is not a setting" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    return found
