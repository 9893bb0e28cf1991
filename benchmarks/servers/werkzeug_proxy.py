"""werkzeug's ``ProxyMiddleware``: one fresh connection for each request."""

from __future__ import annotations

import os

from werkzeug.exceptions import NotFound
from werkzeug.middleware.http_proxy import ProxyMiddleware

TARGET = {"target": os.environ["BENCH_BACKEND_1"] + "/", "remove_prefix": False}

app = ProxyMiddleware(NotFound(), {"/api": TARGET})
