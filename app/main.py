"""The application that servers import, `app.main:app`; whoever wants one of other settings calls `create_app`."""

import structlog

from app.factory import create_app
from app.server.logs import configure_logging
from app.settings import load_settings

settings = load_settings()
configure_logging(settings)
if "secret_key" not in settings.auth.model_fields_set:
    log = structlog.stdlib.get_logger("app")
    log.warning("SECRET_KEY is not set: a random one, drawn at each start, signs the access tokens; put one in .env")
app = create_app(settings)
