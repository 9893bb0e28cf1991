"""WSGI middlewares, one file per concern; each can be used on its own around any WSGI app."""
