"""Each middleware works alone around a real Flask and a real Django app, and all in any order."""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from wsgiref.validate import validator

import jwt
import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path
from flask import Flask, Response, request, session

from tests.support.django_project import configure
from wsgigate.auth.message_signature import Signer
from wsgigate.coordination.api_keys import ApiKeys
from wsgigate.coordination.maintenance import MaintenanceSwitch
from wsgigate.http.problem import Problem
from wsgigate.http.wsgi import CLAIMS
from wsgigate.middleware.all_of import AllOf
from wsgigate.middleware.any_of import AnyOf
from wsgigate.middleware.api_key import ApiKeyAuthenticator
from wsgigate.middleware.authenticator import Authenticator
from wsgigate.middleware.basic import BasicAuthenticator
from wsgigate.middleware.body_limit import BodyLimit
from wsgigate.middleware.client_address import ClientAddress
from wsgigate.middleware.client_certificate import ClientCertificate
from wsgigate.middleware.concurrency import ConcurrencyLimiter
from wsgigate.middleware.cors import Cors
from wsgigate.middleware.fallback import Fallback
from wsgigate.middleware.faults import FaultRules, Faults
from wsgigate.middleware.forward_auth import ForwardAuth
from wsgigate.middleware.guard import Guard
from wsgigate.middleware.introspection import IntrospectionAuthenticator
from wsgigate.middleware.limiter import Limiter
from wsgigate.middleware.logger import Logger
from wsgigate.middleware.maintenance import Maintenance
from wsgigate.middleware.message_signature import SignatureAuthenticator
from wsgigate.middleware.mirror import Mirror
from wsgigate.middleware.request_id import RequestId
from wsgigate.middleware.splitter import Splitter
from wsgigate.middleware.stale import StaleAnswers
from wsgigate.middleware.webhooks import WebhookVerifier
from wsgigate.store.memory import MemoryStore
from wsgigate.testing.fakes import Server, new_environ

SECRET = "a secret of the tests, thirty-two bytes or more"
ORIGIN = "https://app.example.com"

KEYS = partial(ApiKeyAuthenticator, keys=ApiKeys(MemoryStore()), required=False)

MIDDLEWARES: dict[str, Callable[[Any], Any]] = {
    "all_of": lambda app: AllOf(app, [KEYS, KEYS]),
    "any_of": lambda app: AnyOf(app, [KEYS], anonymous=True),
    "api_key": lambda app: ApiKeyAuthenticator(app, ApiKeys(MemoryStore()), required=False),
    "authenticator": lambda app: Authenticator(app, algorithms=["HS256"], secret=SECRET),
    "basic": lambda app: BasicAuthenticator(app, "none", store=MemoryStore(), required=False),
    "body_limit": lambda app: BodyLimit(app, 1000),
    "client_address": ClientAddress,
    "client_certificate": lambda app: ClientCertificate(app, required=False),
    "concurrency": lambda app: ConcurrencyLimiter(app, 1000, store=MemoryStore()),
    "cors": lambda app: Cors(app, origins=[ORIGIN]),
    "fallback": lambda app: Fallback(app, Problem(503)),
    "faults": lambda app: Faults(
        app, FaultRules(abort_percent=1), enabled=True, random=lambda: 0.5
    ),
    "forward_auth": lambda app: ForwardAuth(
        app, "https://auth.example.com/", exempt=lambda environ: True
    ),
    "guard": Guard,
    "introspection": lambda app: IntrospectionAuthenticator(
        app,
        "https://id.example.com/",
        bearer_token="token",
        exempt=lambda environ: True,  # the token of these requests is a JWT
    ),
    "limiter": lambda app: Limiter(app, "1000 per minute", store=MemoryStore()),
    "logger": lambda app: Logger(app, stream=io.StringIO()),
    "maintenance": lambda app: Maintenance(app, MaintenanceSwitch(MemoryStore())),
    "mirror": lambda app: Mirror(app, Problem(503)),
    "request_id": RequestId,
    "signature": lambda app: SignatureAuthenticator(
        app, [Signer(subject="a", id="a", secret=SECRET)], store=MemoryStore(), required=False
    ),
    "splitter": lambda app: Splitter({"one": (app, 1), "none": (Problem(500), 0)}),
    "stale": StaleAnswers,
    "webhook": lambda app: WebhookVerifier(
        app, secret="a secret", provider="github", required=False
    ),
}

each = pytest.mark.parametrize("make", MIDDLEWARES.values(), ids=MIDDLEWARES)


def flask_app() -> Any:
    app = Flask(__name__)
    app.secret_key = "a key of the tests"

    @app.get("/")
    def index() -> Response:
        session["seen"] = "yes"
        response = Response("hello", content_type="text/plain")
        response.set_cookie("second", "2")
        return response

    @app.post("/echo")
    def echo() -> Response:
        return Response(request.data, content_type="application/octet-stream")

    @app.get("/stream")
    def stream() -> Response:
        return Response((part for part in ("a", "b", "c")), content_type="text/plain")

    @app.get("/who")
    def who() -> dict[str, Any]:
        return {"claims": request.environ.get(CLAIMS)}

    @app.get("/fail")
    def fail() -> str:
        raise LookupError("a bug")

    return app.wsgi_app


class Urls:
    """Stands in for a module of URLs."""

    @staticmethod
    def index(request: Any) -> HttpResponse:
        response = HttpResponse("hello", content_type="text/plain")
        response.set_cookie("first", "1")
        response.set_cookie("second", "2")
        return response

    @staticmethod
    def echo(request: Any) -> HttpResponse:
        return HttpResponse(request.body, content_type="application/octet-stream")

    @staticmethod
    def stream(request: Any) -> StreamingHttpResponse:
        return StreamingHttpResponse((part for part in ("a", "b", "c")), content_type="text/plain")

    @staticmethod
    def who(request: Any) -> HttpResponse:
        return HttpResponse(json.dumps({"claims": request.META.get(CLAIMS)}))

    @staticmethod
    def fail(request: Any) -> HttpResponse:
        raise LookupError("a bug")


class UrlConf:
    urlpatterns = (
        path("", Urls.index),
        path("echo", Urls.echo),
        path("stream", Urls.stream),
        path("who", Urls.who),
        path("fail", Urls.fail),
    )


@pytest.fixture(params=["flask", "django"])
def framework(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Yield a real app of each framework."""
    if request.param == "flask":
        yield flask_app()
        return
    configure()
    with override_settings(
        ROOT_URLCONF=UrlConf, MIDDLEWARE=[], ALLOWED_HOSTS=["*"], DEBUG=False,
        LOGGING_CONFIG=None,
    ):  # fmt: skip
        yield WSGIHandler()


def ask(app: Any, target: str = "/", method: str = "GET", body: bytes = b"", **more: Any) -> Server:
    token = jwt.encode({"sub": "u1", "exp": int(time.time()) + 60}, SECRET, "HS256")
    environ = {
        **new_environ(method, body),
        "PATH_INFO": target,
        "HTTP_AUTHORIZATION": f"Bearer {token}",
        "HTTP_ORIGIN": ORIGIN,
        **more,
    }
    return Server().serve(app, environ)


def check_all_pages(app: Any) -> None:
    index = ask(app)
    assert (index.status, b"".join(index.chunks)) == ("200 OK", b"hello")
    cookies = [value for name, value in index.headers if name == "Set-Cookie"]
    assert len(cookies) == 2
    head = ask(app, method="HEAD")
    assert head.status == "200 OK"
    assert {name for name, _ in head.headers} == {name for name, _ in index.headers}
    echo = ask(app, "/echo", "POST", b"x" * 1000)
    assert (echo.status, b"".join(echo.chunks)) == ("200 OK", b"x" * 1000)
    stream = ask(app, "/stream")
    assert (stream.status, [chunk for chunk in stream.chunks if chunk]) == (
        "200 OK",
        [b"a", b"b", b"c"],
    )
    assert ask(app, "/nowhere").status.startswith("404")
    assert ask(app, "/fail").status.startswith("500")


@each
def test_each_middleware_works_alone(framework, make, caplog):
    check_all_pages(make(framework))


@pytest.mark.parametrize("seed", range(12))
def test_all_work_together_in_any_order(framework, seed, caplog):
    makes = list(MIDDLEWARES.values())
    random.Random(seed).shuffle(makes)
    app = framework
    for make in makes:
        app = make(app)
    check_all_pages(app)


@pytest.mark.parametrize("seed", range(24))
def test_the_whole_stack_is_valid_wsgi_in_any_order(seed):
    """R01: between any two middlewares, too."""

    def app(environ, start_response):
        if environ["REQUEST_METHOD"] == "POST":
            environ["wsgi.input"].read(10)
        if environ["REQUEST_METHOD"] == "DELETE":
            start_response("204 No Content", [("X-From-App", "yes")])
            return []
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [b"hello, ", b"world"]

    makes = list(MIDDLEWARES.values())
    random.Random(seed).shuffle(makes)
    stack: Any = validator(app)
    for make in makes:
        stack = validator(make(stack))
    for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS"):
        for more in ({}, {"wsgi.input_terminated": True}):
            server = ask(stack, method=method, body=b"x" * 10 if method == "POST" else b"", **more)
            assert server.status[:3] in ("200", "204")
    refused = (
        {"HTTP_AUTHORIZATION": "Bearer bad"},
        {"CONTENT_LENGTH": "1001"},
    )
    for more in refused:  # type: ignore[assignment]
        assert ask(stack, method="POST", body=b"x", **more).status.startswith("4")
    preflight = {"HTTP_ACCESS_CONTROL_REQUEST_METHOD": "TRACE"}
    assert ask(stack, method="OPTIONS", **preflight).status == "403 Forbidden"


def test_a_body_that_is_too_large_is_refused(framework):
    app = BodyLimit(framework, 1000)
    assert ask(app, "/echo", "POST", b"x" * 1001).status.startswith("413")


def test_a_chunked_body_that_is_too_large_is_refused_while_flask_reads_it(caplog):
    chunked = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    app = BodyLimit(flask_app(), 1000)
    for size, status in ((1000, "200"), (1001, "413"), (10**6, "413")):
        body = io.BytesIO(b"x" * size)
        answer = ask(app, "/echo", "POST", **{"wsgi.input": body, **chunked})
        assert answer.status.startswith(status)
        assert body.tell() <= 1001
        lengths = [value for name, value in answer.headers if name == "Content-Length"]
        assert lengths == [str(len(b"".join(answer.chunks)))]


def test_the_verified_caller_arrives_in_the_framework(framework):
    answer = ask(MIDDLEWARES["authenticator"](framework), "/who")
    assert json.loads(b"".join(answer.chunks))["claims"]["sub"] == "u1"


def test_an_app_that_cannot_fail_by_itself_is_guarded(caplog):
    """Flask lets exceptions out when it is told to propagate them."""
    app = Flask(__name__)
    app.config["PROPAGATE_EXCEPTIONS"] = True

    @app.get("/")
    def index() -> str:
        raise SystemExit(1)

    answer = ask(Guard(app.wsgi_app))
    assert answer.status.startswith("500")
    assert json.loads(b"".join(answer.chunks))["message"] == "Gateway error occurred"
