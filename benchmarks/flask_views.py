"""``python -m benchmarks.flask_views``: the cost of the Flask extension for a request of a view.

Microseconds of processor time, the least of many rounds that alternate between the cases, as other
work of the machine only adds. Each case is a whole request of the same view: what it takes more
than ``bare`` is the cost. Counts are in memory, of this package as of Flask-Limiter, which is left
out if it is not installed; LMDB, which counts for all workers, is the default of the extension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from wsgiref.types import WSGIApplication

from flask import Flask
from werkzeug.test import create_environ

from benchmarks.meter import least_costs
from benchmarks.table import aligned
from wsgigate import Identity
from wsgigate.flask import WsgiGate, requires
from wsgigate.http.wsgi import IDENTITY

__all__ = ["costs"]

ADA = Identity("ada", "bearer", scopes=frozenset({"orders:read"}))
QUOTA = "1000000000 per day"


def _view() -> str:
    return "hello"


def _app(view: Callable[..., Any] = _view, gate: WsgiGate | None = None, **config: object) -> Flask:
    app = Flask("hello")
    app.config.update(WSGIGATE_STORE={"url": "memory:"}, **config)
    app.add_url_rule("/", "view", view)
    if gate is not None:
        gate.init_app(app)
    return app


def _request(app: WSGIApplication) -> Callable[[], object]:
    template = {**create_environ("/"), IDENTITY: ADA}

    def start(status: str, headers: object, exc_info: object = None) -> Any:
        if status != "200 OK":
            raise AssertionError(status)

    return lambda: list(app(template.copy(), start))


def _cases() -> dict[str, Callable[[], object]]:
    gate, limited = WsgiGate(), WsgiGate()
    routes = {
        "WSGIGATE_SERVICES": {"orders": {"instances": ["http://127.0.0.1:9"]}},
        "WSGIGATE_ROUTES": [{"path": "/api/orders", "service": "orders"}],
        "WSGIGATE_GATEWAY": {"request_id": False},
    }
    apps = {
        "bare": _app(),
        "extension": _app(gate=WsgiGate()),
        "mounted gateway": _app(gate=WsgiGate(), **routes),
        "requires()": _app(requires("orders:read")(_view), gate),
        "limit()": _app(limited.limit(QUOTA)(_view), limited),
    }
    other = _flask_limiter()
    if other is not None:
        apps["Flask-Limiter"] = other
    return {name: _request(app) for name, app in apps.items()}


def _flask_limiter() -> Flask | None:
    try:
        from flask_limiter import Limiter
        from flask_limiter.util import get_remote_address
    except ModuleNotFoundError:
        return None
    app = Flask("hello")
    limiter = Limiter(get_remote_address, app=app, storage_uri="memory://", headers_enabled=True)
    app.add_url_rule("/", "view", limiter.limit(QUOTA)(_view))
    return app


def costs(*, calls: int = 200, rounds: int = 30) -> dict[str, float]:
    """Return by name how many microseconds a request takes.

    :param calls: The requests of a case in each round.
    :param rounds: The number of rounds; the least counts.
    """
    return least_costs(_cases(), calls=calls, rounds=rounds)


if __name__ == "__main__":
    found = costs()
    rows = [(name, f"{cost:.1f}", f"{cost - found['bare']:.1f}") for name, cost in found.items()]
    print(aligned([("", "CPU µs", "more than bare"), *rows]))
