"""The project's WSGI application, with limits around it."""

from __future__ import annotations

import os
from typing import Any

from django.core.wsgi import get_wsgi_application

from wsgigate import ConcurrencyLimiter, Limiter

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")


def only(method: str, path: str) -> Any:
    """Return what exempts everything but *method* on *path*."""
    return lambda environ: (environ["REQUEST_METHOD"], environ["PATH_INFO"]) != (method, path)


application = get_wsgi_application()
application = ConcurrencyLimiter(application, 10)
application = Limiter(application, ["2/s", "30/m"], exempt=only("GET", "/search"), name="search")
application = Limiter(application, "5/m", exempt=only("POST", "/login"), name="login")
application = Limiter(application, "1000 per hour", key="cookie:sessionid|address", name="all")
