"""gunicorn.conf.py with short timeouts, for tests that wait until one expires."""

import runpy
from pathlib import Path

import hitless

conf = runpy.run_path(str(Path(__file__).parents[2] / "gunicorn.conf.py"))
globals().update(conf)

hooks = hitless.hooks(
    limits=hitless.Limits(request_seconds=2, unread_seconds=2),
    render_refusal=conf["render_refusal"](hsts=conf["settings"].is_production and conf["certfile"] is not None),
)
pre_fork = hooks.pre_fork
