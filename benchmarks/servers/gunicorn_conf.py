"""gunicorn as ``wsgigate run`` sets it up, around the app that ``$BENCH_APP`` names.

No worker is replaced during a measurement, so that all of it is one process's time.
"""

import os

from wsgigate.servers.gunicorn import settings

globals().update(settings())

bind = os.environ["BENCH_BIND"]
wsgi_app = os.environ["BENCH_APP"]
worker_class = os.environ.get("BENCH_WORKER") or worker_class  # type: ignore[name-defined]  # noqa: F821
threads = int(os.environ["BENCH_THREADS"])
workers = 1
max_requests = 0
