"""CORS preflights: what browsers send before a request passes those that refuse, and nothing else.

A browser sends no token and no cookie with it, and has no use for a refusal: without the fields of
the CORS protocol a page cannot read any response.
"""

from __future__ import annotations

import flask
import pytest
from werkzeug.test import Client

from wsgigate import Authenticator, ConcurrencyLimiter, Cors, Limiter, Problem
from wsgigate.flask import render_refusals
from wsgigate.http.wsgi import CLAIMS, is_preflight
from wsgigate.store.memory import MemoryStore
from wsgigate.testing.fakes import Server, new_environ

SECRET = "a secret of the tests, thirty-two bytes or more"
ORIGIN = "https://app.example.com"
PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT"}
ENVIRON = {"HTTP_ORIGIN": ORIGIN, "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "PUT"}


def authenticated(app, **options):
    return Authenticator(app, algorithms=["HS256"], secret=SECRET, **options)


@pytest.mark.parametrize(
    ("method", "more", "is_one"),
    [
        ("OPTIONS", {}, True),
        ("OPTIONS", {"CONTENT_LENGTH": "0"}, True),
        ("OPTIONS", {"CONTENT_LENGTH": ""}, True),
        ("OPTIONS", {"CONTENT_LENGTH": "1"}, False),
        ("OPTIONS", {"HTTP_TRANSFER_ENCODING": "chunked"}, False),
        ("OPTIONS", {"HTTP_ACCESS_CONTROL_REQUEST_METHOD": ""}, False),
        ("OPTIONS", {"HTTP_ACCESS_CONTROL_REQUEST_METHOD": "GET POST"}, False),
        ("OPTIONS", {"HTTP_X_HTTP_METHOD_OVERRIDE": "DELETE"}, False),
        ("OPTIONS", {"HTTP_X_HTTP_METHOD": "DELETE"}, False),
        ("OPTIONS", {"HTTP_X_METHOD_OVERRIDE": "DELETE"}, False),
        ("GET", {}, False),
        ("options", {}, False),
        ("DELETE", {}, False),
    ],
)
def test_a_preflight_is_recognized_by_its_method_and_fields(method, more, is_one):
    assert is_preflight({"REQUEST_METHOD": method, **ENVIRON, **more}) is is_one


@pytest.mark.parametrize("missing", ENVIRON)
def test_options_without_the_fields_of_a_preflight_is_no_preflight(missing):
    environ = {"REQUEST_METHOD": "OPTIONS", **ENVIRON}
    del environ[missing]
    assert not is_preflight(environ)


def app_with_cors():
    """A Flask app that answers for CORS itself, as Flask-Cors does."""
    app = flask.Flask("shop")
    calls = []

    @app.route("/orders", methods=["GET", "PUT", "DELETE"])
    def orders():
        calls.append(flask.request.method)
        return "done"

    @app.get("/stream")
    def stream():
        return flask.Response(iter(["1", "2"]))

    @app.after_request
    def cors(response):
        response.headers["Access-Control-Allow-Origin"] = ORIGIN
        return response

    return app, calls


def test_a_preflight_needs_no_token_and_reaches_no_view():
    app, calls = app_with_cors()
    client = Client(authenticated(app))
    answer = client.options("/orders", headers=PREFLIGHT)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    for headers in (
        {**PREFLIGHT, "X-HTTP-Method-Override": "DELETE"},
        {"Origin": ORIGIN},
        {**PREFLIGHT, "Authorization": "Bearer forged"},
    ):
        assert client.options("/orders", headers=headers).status_code == 401
    assert client.put("/orders", headers=PREFLIGHT).status_code == 401
    assert calls == []
    strict = Client(authenticated(app, preflights=True))
    assert strict.options("/orders", headers=PREFLIGHT).status_code == 401


def test_a_preflight_has_no_claims_that_it_brought_along():
    seen = []

    def inner(environ, start_response):
        seen.append(CLAIMS in environ)
        start_response("204 No Content", [])
        return []

    environ = {**new_environ("OPTIONS"), **ENVIRON, CLAIMS: {"sub": "forged"}}
    Server().serve(authenticated(inner), environ)
    assert seen == [False]


@pytest.mark.parametrize("limit", [Limiter, ConcurrencyLimiter])
def test_a_preflight_is_not_counted_and_not_rejected(limit):
    app, _ = app_with_cors()
    quota = "1/m" if limit is Limiter else 1
    store = MemoryStore()
    client = Client(limit(app, quota, store=store))
    for _ in range(3):
        answer = client.options("/orders", headers=PREFLIGHT)
        assert (answer.status_code, "RateLimit" in answer.headers) == (200, False)
    assert list(store.items("")) == []
    held = client.get("/stream")
    assert (held.status_code, client.get("/orders").status_code) == (200, 429)
    assert client.options("/orders", headers=PREFLIGHT).status_code == 200
    assert client.options("/orders", headers={"Origin": ORIGIN}).status_code == 429
    counting = Client(limit(app, quota, store=store, preflights=True))
    assert counting.options("/orders", headers=PREFLIGHT).status_code == 429
    held.close()


def test_refusals_that_the_app_renders_have_its_cors_fields():
    app, _ = app_with_cors()
    refuse = render_refusals(app)
    stack = authenticated(app.wsgi_app, refuse=refuse)
    client = Client(Limiter(stack, "1/m", store=MemoryStore(), refuse=refuse))
    for status in (401, 429):
        answer = client.get("/orders", headers={"Origin": ORIGIN})
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN


def test_refusals_inside_of_a_cors_have_its_fields():
    app, _ = app_with_cors()
    stack = Limiter(authenticated(app), "1/m", store=MemoryStore())
    client = Client(Cors(stack, origins=[ORIGIN]))
    for status in (401, 429):
        answer = client.get("/orders", headers={"Origin": ORIGIN})
        assert answer.status_code == status
        assert answer.headers.getlist("Access-Control-Allow-Origin") == [ORIGIN]


@pytest.mark.parametrize(
    ("exempt", "path", "status"),
    [
        ({"paths": ["/orders"]}, "/orders", 200),
        ({"paths": ["/orders"]}, "/orders/", 401),
        ({"paths": ["/static/*"]}, "/static/../orders", 401),
        ({"paths": ["/static/*"]}, "/static/%2e%2e/orders", 401),
        ({"methods": ["GET"]}, "/orders", 200),
        ({"addresses": ["127.0.0.0/8"]}, "/orders", 401),
        (lambda environ: environ["PATH_INFO"] == "/orders", "/orders", 200),
    ],
)
def test_exempt_requests_pass_without_claims_whatever_they_bring(exempt, path, status):
    stack = authenticated(Problem(200), exempt=exempt)
    for more in ({}, {"HTTP_AUTHORIZATION": "Bearer forged"}):
        environ = {**new_environ(), "SCRIPT_NAME": "", "PATH_INFO": path, "RAW_URI": path, **more}
        environ["REMOTE_ADDR"] = "192.0.2.1"
        assert Server().serve(stack, environ).status[:3] == str(status)


def test_a_wrong_exemption_is_refused():
    with pytest.raises(ValueError, match="exempt has no path"):
        authenticated(flask.Flask("x"), exempt={"path": ["/"]})
