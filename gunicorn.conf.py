"""gunicorn for a gateway: ``WSGIGATE_CONFIG=gateway.toml gunicorn -c gunicorn.conf.py``."""

import os

from wsgigate.servers.gunicorn import settings

# gunicorn reads a file of this name for whatever it starts in this folder.
if "WSGIGATE_CONFIG" in os.environ:
    globals().update(settings())
    wsgi_app = "wsgigate.servers.gunicorn:application()"
