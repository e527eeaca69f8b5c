# In two stages: one that installs, and one that has what runs and no more. A comment says why where a line is not the
# usual one.

# An argument, so that a mirror, a digest or the next version needs no edit.
ARG PYTHON_IMAGE=python:3.14-slim-trixie

# ---- builder: has uv, makes the virtual environment, leaves nothing else behind ----
FROM ${PYTHON_IMAGE} AS builder

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

# No apt-get: every dependency comes as a wheel, so there is nothing to compile.
# Pinned, so that the same tree builds the same image.
RUN pip install uv==0.13.9

WORKDIR /app

# UV_PROJECT_ENVIRONMENT, as `uv sync` would install into /app/.venv whatever `uv venv` made before.
# Bytecode now, as the running user may not write it; bound to the sources' content, as their times differ in every
# build.
ENV UV_PROJECT_ENVIRONMENT=/opt/venv \
    UV_PYTHON_DOWNLOADS=never \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_COMPILE_BYTECODE=1 \
    PYC_INVALIDATION_MODE=UNCHECKED_HASH

# The dependencies first: a change of the code does not install them again.
COPY pyproject.toml uv.lock ./
# The lock is uv's own while it works, and everyone may write to it.
RUN uv sync --frozen --no-dev && rm -f /opt/venv/.lock

COPY gunicorn.conf.py ./
COPY app ./app
# Whatever the permissions were where the tree was checked out, everyone may read and only root may write.
RUN python -m compileall -q --invalidation-mode unchecked-hash app gunicorn.conf.py \
    && chmod -R u=rwX,go=rX . \
    && rm uv.lock

# ---- production ----
FROM ${PYTHON_IMAGE} AS production

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH="/opt/venv/bin:$PATH"

# How long the resolver waits for a name server's answer before it asks once more. By default that is 5 seconds: nobody
# waits for the connection any more, while the lookup goes on, in one of the few threads that later lookups need.
ENV RES_OPTIONS=timeout:1

# By number, as Kubernetes' runAsNonRoot cannot check a name. Not `-r`: 10001 is no user of the host's. With no date,
# or /etc/shadow would have that of the build.
RUN groupadd --gid 10001 appuser \
    && SOURCE_DATE_EPOCH=0 useradd --uid 10001 --gid appuser --no-create-home --shell /usr/sbin/nologin appuser

# Where the embedded database lives when no other is set: in a volume, which a read-only root file system leaves
# writable. Group 0 may write too: it is what `docker run --user 12345:0` and OpenShift run as.
ENV DATABASE_URL=sqlite+aiosqlite:////data/app.db
RUN install -d -o 10001 -g 0 -m 0770 /data
VOLUME /data

# No apt-get here either: the health check needs no curl.

COPY --from=builder /opt/venv /opt/venv

WORKDIR /app

# Only what runs, and owned by root: the running user cannot rewrite the program.
COPY --from=builder /app /app

USER 10001:10001

EXPOSE 8000

# Python's own HTTP client instead of curl, on $PORT and in HTTPS where that is on. While it starts it is asked every
# second, so that whoever waits for this container waits no longer than it takes. 30 seconds of that instead of 5: on a
# busy machine a start takes longer, and the next question would come half a minute later.
HEALTHCHECK --interval=30s --timeout=30s --start-period=30s --start-interval=1s --retries=3 \
    CMD ["python", "-m", "app.server.healthcheck"]

LABEL org.opencontainers.image.title="fastapi-app" \
      org.opencontainers.image.description="A user-management API on FastAPI" \
      org.opencontainers.image.licenses="MIT"

CMD ["gunicorn", "app.main:app", "-c", "gunicorn.conf.py"]
