"""WSGIProxy2 with its ``requests`` client, which keeps its connections."""

from __future__ import annotations

import os

from wsgiproxy import HostProxy

app = HostProxy(os.environ["BENCH_BACKEND_1"], client="requests")
