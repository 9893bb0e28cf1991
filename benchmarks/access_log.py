"""What a record of the access log costs a request, by format, in microseconds of CPU time.

``python -m benchmarks.access_log`` prints the cost of a Logger around an app that does nothing, as
the difference to the app alone. The thread that writes is included, as it takes the same CPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate import Logger
from wsgigate.http.wsgi import REQUEST_ID, ROUTE, SERVICE

REQUESTS = 20_000
ROUNDS = 5
FORMATS = ("json", "text", "logfmt", "otel", "ecs", "combined")


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


ENVIRON: WSGIEnvironment = {
    "REQUEST_METHOD": "GET",
    "RAW_URI": "/api/orders/7?page=2",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/api/orders/7",
    "QUERY_STRING": "page=2",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "192.0.2.1",
    "HTTP_HOST": "shop.example",
    "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "wsgi.url_scheme": "https",
    REQUEST_ID: "4d1c9f0b2a7e4f55a1d0c3b2e1f0a9b8",
    ROUTE: "orders",
    SERVICE: "orders",
}


def _start(status: str, headers: object, exc_info: object = None) -> object:
    return None


def cost(served: WSGIApplication) -> float:
    """Return the CPU time of a request, in microseconds."""
    began = time.process_time()
    for _ in range(REQUESTS):
        served(dict(ENVIRON), _start)  # type: ignore[arg-type]
    if isinstance(served, Logger):
        served.flush(60)
    return (time.process_time() - began) / REQUESTS * 1e6


def main() -> None:
    """Print the medians of some rounds in which all formats take turns."""
    with open("/dev/null", "w") as null:
        loggers: dict[str, WSGIApplication] = {
            name: Logger(app, stream=null, format=name, queue_size=1_000_000)  # type: ignore[arg-type]
            for name in FORMATS
        }
        found: dict[str, list[float]] = {name: [] for name in FORMATS}
        for _ in range(ROUNDS):
            alone = cost(app)
            for name, served in loggers.items():
                found[name].append(cost(served) - alone)
        for served in loggers.values():
            served.close()  # type: ignore[attr-defined]
    for name, each in found.items():
        print(f"{name:10}{sorted(each)[ROUNDS // 2]:6.1f} us")


if __name__ == "__main__":
    main()
