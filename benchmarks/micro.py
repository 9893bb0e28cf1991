"""What each middleware costs by itself: around an app that does nothing, in this process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate import (
    ApiKeyAuthenticator,
    ApiKeys,
    Authenticator,
    Authorizer,
    BodyLimit,
    Breaker,
    CircuitRules,
    ClientAddress,
    Cors,
    Dispatcher,
    Guard,
    Identity,
    Limiter,
    Logger,
    RequestId,
    Route,
    Shedder,
)
from wsgigate.auth.jwt import mint
from wsgigate.http.wsgi import IDENTITY
from wsgigate.store.lmdb import LmdbStore

__all__ = ["costs", "serve"]

SECRET = "only for measuring, and thirty-two bytes long"
_TOKEN = mint(SECRET, "HS256", "7")
_ENVIRON: WSGIEnvironment = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/api/orders/7",
    "RAW_URI": "/api/orders/7",
    "QUERY_STRING": "",
    "REMOTE_ADDR": "192.0.2.7",
    "REMOTE_PORT": "49152",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "3000",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "HTTP_HOST": "api.example.com",
    "HTTP_ACCEPT": "application/json",
    "HTTP_USER_AGENT": "bench/1.0",
    "HTTP_AUTHORIZATION": f"Bearer {_TOKEN}",
    "wsgi.url_scheme": "http",
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.input": BytesIO(),
    "wsgi.errors": None,
}
_HEADERS = [("Content-Type", "application/json"), ("Content-Length", "2"), ("ETag", '"1"')]

Wrap = Callable[[WSGIApplication], WSGIApplication]


def _nothing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", list(_HEADERS))
    return [b"{}"]


def _start(*_arguments: object) -> Callable[[bytes], object]:
    return _write


def _write(_data: bytes) -> None:
    pass


def serve(app: WSGIApplication, count: int) -> None:
    """Have *app* answer *count* requests as a server would."""
    for _ in range(count):
        body = app(_ENVIRON.copy(), _start)
        for _block in body:
            pass
        close = getattr(body, "close", None)
        if close is not None:
            close()


def _seconds(app: WSGIApplication, count: int, settle: Callable[[], object]) -> float:
    """Return the processor time of *count* requests, that of the log's own thread included."""
    before = time.process_time()
    serve(app, count)
    settle()
    return time.process_time() - before


def _opened(app: WSGIApplication, store: LmdbStore) -> Breaker:
    """Return a breaker that refuses all requests for longer than is measured."""

    def failing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("500 Internal Server Error", [])
        return []

    rules = CircuitRules(consecutive_failures=1, open_for=3600, jitter=0)
    breaker = Breaker(failing, rules, name="open", store=store)
    serve(breaker, 1)
    breaker.app = app
    return breaker


@contextmanager
def _wraps() -> Iterator[tuple[dict[str, Wrap], list[Logger]]]:
    """Yield by name what puts an app into a middleware, and the loggers that were made so."""
    loggers: list[Logger] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        null = stack.enter_context(open("/dev/null", "w"))
        store = LmdbStore(folder / "store")
        stack.callback(store.close)
        keys = ApiKeys(store)
        issued = keys.create("partner", plan="gold", scopes=["orders:read"])
        _ENVIRON["HTTP_X_API_KEY"] = issued.key
        _ENVIRON[IDENTITY] = Identity.from_claims(
            {"sub": "ann", "scope": "orders:read", "realm_access": {"roles": ["clerk"]}}
        )

        def logger(app: WSGIApplication) -> WSGIApplication:
            loggers.append(Logger(app, stream=null, format="json", queue_size=1_000_000))
            stack.callback(loggers[-1].close)
            return loggers[-1]

        yield (
            {
                "Guard": Guard,
                "ClientAddress": ClientAddress,
                "RequestId": RequestId,
                "Logger": logger,
                "Limiter": lambda app: Limiter(app, "900000000 per hour", store=store),
                "Authenticator": lambda app: Authenticator(
                    app, algorithms=["HS256"], secret=SECRET
                ),
                "ApiKeyAuthenticator": lambda app: ApiKeyAuthenticator(
                    app, keys, scopes=["orders:read"]
                ),
                "Authorizer": lambda app: Authorizer(
                    app,
                    roles=["clerk"],
                    rules=[
                        {"methods": ["GET"], "scopes": ["orders:read"]},
                        {"methods": ["POST"], "scopes": ["orders:write"]},
                    ],
                ),
                "BodyLimit": BodyLimit,
                "Breaker": lambda app: Breaker(app, store=store),
                "Breaker, open": lambda app: _opened(app, store),
                "Shedder": Shedder,
                "Cors": lambda app: Cors(app, origins=["https://example.com"]),
                "Dispatcher": lambda app: Dispatcher([Route("/api/orders", app)]),
            },
            loggers,
        )


FULL = ("Guard", "ClientAddress", "RequestId", "Logger", "Limiter", "Guard", "Authenticator")
"""The middlewares of a full stack, outermost first, as a gateway's file has them built."""


def costs(*, requests: int = 2_000, repeats: int = 50) -> dict[str, float]:
    """Return by name how many microseconds each middleware adds to a request.

    The last one, ``full stack``, is all that a gateway is built of but routing and forwarding.

    :param requests: How many are served for each figure, each time.
    :param repeats: How often; the least counts, as whatever else the machine does only adds.
    """
    with _wraps() as (wraps, loggers):
        apps: dict[str, WSGIApplication] = {"": _nothing}
        apps |= {name: wrap(_nothing) for name, wrap in wraps.items()}
        full: WSGIApplication = _nothing
        for name in reversed(FULL):
            full = wraps[name](full)
        apps["full stack"] = full

        def settle() -> None:
            for logger in loggers:
                logger.flush()

        taken: dict[str, list[float]] = {name: [] for name in apps}
        for app in apps.values():
            _seconds(app, requests // 10, settle)
        for _ in range(repeats):
            for name, app in apps.items():
                taken[name].append(_seconds(app, requests, settle))
    bare = min(taken.pop(""))
    return {name: (min(each) - bare) / requests * 1e6 for name, each in taken.items()}
