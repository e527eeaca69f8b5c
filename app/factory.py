"""The composition of the application, on one screen."""

from operator import attrgetter

from fastapi import FastAPI
from fastapi_standalone_docs import StandaloneDocs

from app import TITLE, __version__
from app.api import PROBES, ROUTERS, TAGS
from app.docs.openapi import DESCRIPTION, build_openapi
from app.errors import add_error_handlers
from app.lifespan import lifespan
from app.middleware.allowed_hosts import AllowedHostsMiddleware
from app.middleware.body_limit import BodyLimitMiddleware
from app.middleware.cors import CORSMiddleware
from app.middleware.rate_limit import RateLimitMiddleware
from app.middleware.request_context import RequestContextMiddleware
from app.middleware.security_headers import SecurityHeadersMiddleware
from app.middleware.startup_errors import StartupErrorMiddleware
from app.middleware.unhandled_errors import UnhandledErrorMiddleware
from app.settings import Settings

# The first parts of the paths that document the API.
DOCS = frozenset({"docs", "redoc", "openapi.json"})
# What has a limit of its own, tighter than that of all the rest; see lifespan.create_limiter.
LIMITS = {("POST", "/auth/login"): "login", ("POST", "/users/"): "register"}


def create_app(settings: Settings) -> FastAPI:
    """Builds an application; nothing is connected before its lifespan begins."""
    app = FastAPI(
        title=TITLE,
        version=__version__,
        description=DESCRIPTION,
        contact={"name": f"The {TITLE} authors", "url": "https://example.com"},
        license_info={"name": "MIT", "identifier": "MIT"},
        openapi_tags=TAGS,
        lifespan=lifespan,
        # What FastAPI itself would tell OpenTelemetry. Where nobody listens, finding that out takes 10 µs a request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        # A generated client has `create_user`, not `create_user_users__post`.
        generate_unique_id_function=attrgetter("name"),
        # A redirect from /users to /users/ would send an Authorization header wherever the Host header says.
        redirect_slashes=False,
        openapi_url="/openapi.json" if settings.http.docs else None,  # None leaves out the pages too
        swagger_ui_oauth2_redirect_url=None,  # a page for a kind of login that is not offered
    )
    app.state.settings = settings
    app.state.prepared = False  # see lifespan.prepare
    app.openapi = lambda: build_openapi(app)  # type: ignore[method-assign]  # FastAPI's own way
    app.router.routes[:0] = PROBES.routes  # before those of the documentation
    for router in ROUTERS:
        app.include_router(router)
    add_error_handlers(app)
    # The pages' scripts and styles come from this process, not from the internet. For that it replaces, in the whole
    # process, the functions that FastAPI makes the pages with.
    StandaloneDocs(app)

    docs = DOCS if settings.http.docs else frozenset()

    # The last one added is the first that a request meets.
    app.add_middleware(BodyLimitMiddleware, max_size=settings.http.max_body_size)
    app.add_middleware(UnhandledErrorMiddleware)
    app.add_middleware(RateLimitMiddleware, limits=LIMITS, default="default", unlimited=docs | {"health"})
    if "*" not in settings.http.allowed_hosts:
        app.add_middleware(AllowedHostsMiddleware, hosts=settings.http.allowed_hosts, anyhow={"health"})
    if settings.http.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.http.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["Link", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-ID"],
        )
    app.add_middleware(
        SecurityHeadersMiddleware,
        docs_pages={"/docs", "/redoc"} if docs else (),
        public=docs,
        hsts=settings.in_production,
    )
    app.add_middleware(RequestContextMiddleware)
    app.add_middleware(StartupErrorMiddleware)
    return app
