"""Compose the application, and create the `app` that servers import."""

from operator import attrgetter

import structlog
from fastapi import FastAPI
from fastapi_standalone_docs import StandaloneDocs

from app import PREFIX, TITLE, __version__
from app.api import TAGS, add_routers
from app.docs.openapi import DESCRIPTION, build_openapi
from app.errors import add_error_handlers
from app.lifespan import lifespan
from app.limiter import MemoryCounter, read_limits
from app.logging import configure_logging
from app.middleware.allowed_hosts import AllowedHostsMiddleware
from app.middleware.body_limit import BodyLimitMiddleware
from app.middleware.cors import CORSMiddleware
from app.middleware.head import HeadMiddleware
from app.middleware.paths import iter_routes
from app.middleware.rate_limit import RateLimitMiddleware, list_rate_limits
from app.middleware.request_context import RequestContextMiddleware
from app.middleware.security_headers import SecurityHeadersMiddleware
from app.middleware.startup_errors import StartupErrorMiddleware
from app.middleware.unhandled_errors import UnhandledErrorMiddleware
from app.middleware.websocket_errors import WebSocketErrorMiddleware
from app.setting_names import describe_unknown_names
from app.settings import Settings, load_settings
from app.urls import describe_ignored_parameters

# The paths of the API's documentation.
DOCS = (f"{PREFIX}/docs/", f"{PREFIX}/redoc/", f"{PREFIX}/openapi.json/")
HEALTH = (f"{PREFIX}/health/",)


def create_app(settings: Settings) -> FastAPI:
    """Create an application. It opens no connections before its lifespan starts."""
    app = FastAPI(
        title=TITLE,
        version=__version__,
        description=DESCRIPTION,
        contact={"name": f"The {TITLE} authors", "url": "https://example.com"},
        license_info={"name": "MIT", "identifier": "MIT"},
        openapi_tags=TAGS,
        lifespan=lifespan,
        # Disable telemetry. Otherwise, FastAPI looks for OpenTelemetry providers on each request, which takes 15 µs.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        # Generate operation ids such as `create_user`. FastAPI's default would be `create_user_users__post`.
        generate_unique_id_function=attrgetter("name"),
        # Do not redirect /users to /users/. The redirect would point to the host in the Host header. This may be any
        # host, and the client would send its Authorization header there.
        redirect_slashes=False,
        openapi_url=f"{PREFIX}/openapi.json" if settings.docs else None,  # None also disables /docs and /redoc
        docs_url=f"{PREFIX}/docs",
        redoc_url=f"{PREFIX}/redoc",
        swagger_ui_oauth2_redirect_url=None,  # a page for OAuth2 login, which the API does not have
    )
    app.state.settings = settings
    app.state.is_database_prepared = False  # see lifespan.py
    limits = read_limits(settings)
    # Create the counters before the workers are forked, so that all workers share them.
    app.state.rate_counters = {name: MemoryCounter() for name in limits}
    app.openapi = lambda: build_openapi(app)  # type: ignore[method-assign]  # as in FastAPI's documentation
    add_routers(app)
    applications = {path: route.app for path, route in iter_routes(app.routes) if isinstance(route.app, FastAPI)}
    applications[""] = app
    for each in applications.values():  # this application, and those that `add_routers` mounted
        add_error_handlers(each)
        StandaloneDocs(each)  # serves the scripts and styles of /docs and /redoc itself, without a CDN

    for *_, limit in list_rate_limits(app.routes):
        if limit not in limits:
            raise LookupError(f"the limit {limit!r} of a route needs a setting RATE_LIMIT_{limit.upper()}")

    # The middleware added last is the outermost.
    app.add_middleware(
        BodyLimitMiddleware,
        routes=app.routes,
        max_size=settings.max_body_size,
        max_total=settings.max_total_body_size,
    )
    app.add_middleware(UnhandledErrorMiddleware)
    app.add_middleware(WebSocketErrorMiddleware)
    app.add_middleware(RateLimitMiddleware, routes=app.routes, exempt=HEALTH)
    if settings.allowed_hosts and "*" not in settings.allowed_hosts:
        app.add_middleware(AllowedHostsMiddleware, hosts=settings.allowed_hosts, exempt=HEALTH)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["Link", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-ID"],
        )
    app.add_middleware(
        SecurityHeadersMiddleware,
        docs_pages={
            f"{path}{page}"
            for path, each in applications.items()
            for page in (each.docs_url, each.redoc_url)
            if each.openapi_url and page
        },
        public=DOCS if settings.docs else (),
        hsts=settings.is_production,
    )
    app.add_middleware(HeadMiddleware)
    app.add_middleware(RequestContextMiddleware, quiet=HEALTH)
    app.add_middleware(StartupErrorMiddleware)
    return app


settings = load_settings()
configure_logging(settings)
log = structlog.stdlib.get_logger("app")
for warning in (
    *describe_unknown_names(settings),
    *describe_ignored_parameters(settings.database_url.get_secret_value()),
):
    log.warning(warning)
app = create_app(settings)
