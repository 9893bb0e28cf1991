"""The project's WSGI application with JWT authentication: one import and one statement."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

from wsgigate import Authenticator

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

application = get_wsgi_application()
application = Authenticator(
    application,
    algorithms=["HS256"],
    secret=os.environ["JWT_SECRET"],
    required=False,  # no token: passes without claims; an invalid token: 401
)
