"""The site in its gateway: requests of the routes in settings.WSGIGATE never reach Django."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

from wsgigate.django import gateway

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

application = gateway(get_wsgi_application())
