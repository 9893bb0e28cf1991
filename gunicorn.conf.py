"""gunicorn for a gateway: ``WSGIGATE_CONFIG=gateway.toml gunicorn -c gunicorn.conf.py``."""

from wsgigate.integrations.gunicorn import settings

globals().update(settings())

wsgi_app = "wsgigate.integrations.gunicorn:application()"
