"""One file per concern, each a plain WSGI middleware that is usable alone around any app."""
