# Two stages: `builder` installs the dependencies, `production` contains only the files needed at runtime.

# The base image is a build argument, so you can use a mirror, a digest or another version without editing this file.
ARG PYTHON_IMAGE=python:3.14-slim-trixie

# ---- builder: creates the virtual environment ----
FROM ${PYTHON_IMAGE} AS builder

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

# No apt-get: every dependency has a wheel, so no compiler is needed.
# uv is pinned, so that the same source tree builds the same image.
RUN pip install uv==0.13.9

WORKDIR /app

# Set UV_PROJECT_ENVIRONMENT, because `uv sync` would otherwise install into /app/.venv. Compile bytecode at build time,
# because the runtime user cannot write it. By default, .pyc files contain the modification times of the sources. To
# keep builds reproducible, use unchecked hash-based .pyc files instead.
ENV UV_PROJECT_ENVIRONMENT=/opt/venv \
    UV_PYTHON_DOWNLOADS=never \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_COMPILE_BYTECODE=1 \
    PYC_INVALIDATION_MODE=UNCHECKED_HASH

# Install the dependencies first, so that this layer stays cached when only the code changes.
COPY pyproject.toml uv.lock ./
COPY packages/exactjson/pyproject.toml ./packages/exactjson/
COPY packages/hitless/pyproject.toml ./packages/hitless/
RUN uv sync --frozen --no-dev --no-install-workspace

# Install the repository's own packages. Copy them into the virtual environment instead of linking to the sources.
COPY packages ./packages
# Remove uv's lock file, which is world-writable, and uv_cache.json, which contains the build time.
RUN uv sync --frozen --no-dev --no-editable \
    && find /opt/venv -name uv_cache.json -delete -o -name RECORD -exec sed -i '/uv_cache\.json/d' {} + \
    && rm -rf /opt/venv/.lock packages

COPY gunicorn.conf.py ./
COPY app ./app
# Whatever permissions the files have in the checkout, make them readable by everyone and writable only by root.
RUN python -m compileall -q --invalidation-mode unchecked-hash app gunicorn.conf.py \
    && chmod -R u=rwX,go=rX . \
    && rm uv.lock

# ---- production ----
FROM ${PYTHON_IMAGE} AS production

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH="/opt/venv/bin:$PATH"

# Seconds until the resolver retries an unresponsive name server. The default, 5, is longer than any request waits for a
# database connection. During this time, a lookup would block one of the few threads that all lookups share.
ENV RES_OPTIONS=timeout:1

# Use a numeric id, because Kubernetes' runAsNonRoot cannot check a name. Do not create a system user (`-r`), because
# its id would be 999, which a service on the host often has. SOURCE_DATE_EPOCH keeps the build date out of /etc/shadow.
RUN groupadd --gid 10001 appuser \
    && SOURCE_DATE_EPOCH=0 useradd --uid 10001 --gid appuser --no-create-home --shell /usr/sbin/nologin appuser

# SQLite is the default database. Its volume is writable even if the root file system is read-only. Make it writable for
# group 0, because OpenShift and `docker run --user 12345:0` run the container with that group.
ENV DATABASE_URL=sqlite+aiosqlite:////data/app.db
RUN install -d -o 10001 -g 0 -m 0770 /data
VOLUME /data

# No apt-get here either: the health check is written in Python and does not need curl.

COPY --from=builder /opt/venv /opt/venv

WORKDIR /app

# Copy only the files needed at runtime. They belong to root, so that the runtime user cannot modify the program.
COPY --from=builder /app /app

USER 10001:10001

EXPOSE 8000

# The check uses Python's HTTP client, $PORT, and HTTPS if it is enabled. During startup, it runs every second, so that
# dependent containers start as soon as this one is healthy. The start period is 30 seconds, because startup can take
# that long on a busy machine. Afterwards, checks run only every 30 seconds.
HEALTHCHECK --interval=30s --timeout=30s --start-period=30s --start-interval=1s --retries=3 \
    CMD ["python", "-m", "app.healthcheck"]

LABEL org.opencontainers.image.title="fastapi-app" \
      org.opencontainers.image.description="A user-management API on FastAPI" \
      org.opencontainers.image.licenses="MIT"

CMD ["gunicorn", "app.main:app", "-c", "gunicorn.conf.py"]
