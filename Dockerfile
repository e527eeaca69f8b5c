# Two stages: the first one installs, the second one contains only what runs. Unusual lines have a comment.

# An argument, so that a mirror, a digest or the next version needs no edit.
ARG PYTHON_IMAGE=python:3.14-slim-trixie

# ---- builder: creates the virtual environment ----
FROM ${PYTHON_IMAGE} AS builder

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

# No apt-get: every dependency has a wheel, so there is nothing to compile.
# Pinned, so that the same tree builds the same image.
RUN pip install uv==0.13.9

WORKDIR /app

# UV_PROJECT_ENVIRONMENT, because `uv sync` installs into /app/.venv by default.
# Bytecode is compiled now, because the running user may not write it. It is checked against nothing, because the times
# of the source files differ in every build.
ENV UV_PROJECT_ENVIRONMENT=/opt/venv \
    UV_PYTHON_DOWNLOADS=never \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_COMPILE_BYTECODE=1 \
    PYC_INVALIDATION_MODE=UNCHECKED_HASH

# The dependencies come first, so that a change of the code does not install them again.
COPY pyproject.toml uv.lock ./
COPY packages/hitless/pyproject.toml ./packages/hitless/
RUN uv sync --frozen --no-dev --no-install-workspace

# The packages of this repository are installed like any other, not linked to their sources.
COPY packages ./packages
# uv's lock file is writable for everyone, and uv_cache.json contains the time of the build.
RUN uv sync --frozen --no-dev --no-editable \
    && find /opt/venv -name uv_cache.json -delete -o -name RECORD -exec sed -i '/uv_cache\.json/d' {} + \
    && rm -rf /opt/venv/.lock packages

COPY gunicorn.conf.py ./
COPY app ./app
# Everyone can read and only root can write, whatever the permissions of the checkout.
RUN python -m compileall -q --invalidation-mode unchecked-hash app gunicorn.conf.py \
    && chmod -R u=rwX,go=rX . \
    && rm uv.lock

# ---- production ----
FROM ${PYTHON_IMAGE} AS production

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH="/opt/venv/bin:$PATH"

# Seconds that the resolver waits for a name server before it asks again. The default is 5: longer than any request waits
# for a connection, while the lookup occupies one of the few threads that later lookups need.
ENV RES_OPTIONS=timeout:1

# By number, because Kubernetes' runAsNonRoot cannot check a name. Not `-r`: it would choose 999, often the id of a service
# on the host. The date is fixed, because /etc/shadow would otherwise contain the date of the build.
RUN groupadd --gid 10001 appuser \
    && SOURCE_DATE_EPOCH=0 useradd --uid 10001 --gid appuser --no-create-home --shell /usr/sbin/nologin appuser

# The embedded database, which is used unless another one is set. A volume is writable even if the root file system is
# read-only. Group 0 can write too, because `docker run --user 12345:0` and OpenShift run with that group.
ENV DATABASE_URL=sqlite+aiosqlite:////data/app.db
RUN install -d -o 10001 -g 0 -m 0770 /data
VOLUME /data

# No apt-get here either: the health check does not need curl.

COPY --from=builder /opt/venv /opt/venv

WORKDIR /app

# Only what runs, owned by root, so that the running user cannot change the program.
COPY --from=builder /app /app

USER 10001:10001

EXPOSE 8000

# Python's HTTP client instead of curl, on $PORT and with HTTPS if it is enabled. During the start it runs every second, so
# that containers that depend on this one do not wait longer than necessary. The start period is 30 seconds,
# because a start can take that long on a busy machine, and after it the next check follows half a minute later.
HEALTHCHECK --interval=30s --timeout=30s --start-period=30s --start-interval=1s --retries=3 \
    CMD ["python", "-m", "app.healthcheck"]

LABEL org.opencontainers.image.title="fastapi-app" \
      org.opencontainers.image.description="A user-management API on FastAPI" \
      org.opencontainers.image.licenses="MIT"

CMD ["gunicorn", "app.main:app", "-c", "gunicorn.conf.py"]
