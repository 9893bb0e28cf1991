"""The project's WSGI application, wrapped with rate limits."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

from wsgigate import ConcurrencyLimiter, Limiter

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")


search = {"paths": ["/search"], "methods": ["GET"]}
login = {"paths": ["/login"], "methods": ["POST"]}

application = get_wsgi_application()
application = ConcurrencyLimiter(application, 10)
application = Limiter(application, ["2/s", "30/m"], only=search, name="search")
application = Limiter(application, "5/m", only=login, name="login")
application = Limiter(application, "1000 per hour", key="cookie:sessionid|address", name="all")
