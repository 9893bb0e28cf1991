"""Rejections that the Flask app renders, with its CORS fields."""

from __future__ import annotations

import flask
import pytest
from werkzeug.exceptions import TooManyRequests
from werkzeug.test import Client

from wsgigate import Authenticator, Dispatcher, Limiter, Problem, Route
from wsgigate.flask import Refused, render_refusals
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock
from wsgigate.testing.fakes import Server, new_environ

SECRET = "a secret of the tests, thirty-two bytes or more"


@pytest.fixture
def app():
    app = flask.Flask("shop")
    app.before_request(lambda: flask.abort(418, "no view and no function before it is to run"))

    @app.after_request
    def fields(response):
        response.headers["Access-Control-Allow-Origin"] = "https://app.example.com"
        response.headers["X-Frame-Options"] = "SAMEORIGIN"
        return response

    return app


def refused(app, **headers):
    limiter = Limiter(
        app.wsgi_app, "1/m", store=MemoryStore(clock=FakeClock()), refuse=render_refusals(app)
    )
    client = Client(limiter)
    client.get("/", headers={"Accept": "*/*"})
    return client.get("/", headers=headers)


def test_without_a_handler_the_document_stays_and_what_the_app_adds_is_on_it(app):
    answer = refused(app)
    assert (answer.status_code, answer.mimetype) == (429, "application/problem+json")
    assert answer.json["detail"].startswith("Too many requests!")
    assert answer.headers.getlist("Retry-After") == ["60"]
    assert answer.headers["RateLimit"] == '"default";r=0;t=60'
    assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
    page = refused(app, Accept="text/html")
    assert page.mimetype == "text/html"


@pytest.mark.parametrize("what", [429, TooManyRequests, Exception])
def test_the_apps_error_handler_renders_a_rejection(app, what):
    seen = []

    @app.errorhandler(what)
    def too_many(error):
        seen.append(error)
        return f"<h1>{error.description}</h1>"  # no status: it is still none of success

    answer = refused(app)
    assert (answer.status_code, answer.mimetype) == (429, "text/html")
    assert answer.text == "<h1>Too many requests! Please try again later.</h1>"
    assert answer.headers["Retry-After"] == "60"
    assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
    error = seen[-1]
    assert isinstance(error, Refused)
    assert isinstance(error, TooManyRequests)
    assert (error.code, error.retry_after, error.problem.status) == (429, 60, 429)


def test_a_handler_may_lead_elsewhere_and_may_set_the_fields_itself(app):
    app.register_error_handler(
        429, lambda error: flask.Response("", 303, {"Location": "/busy", "Retry-After": "7"})
    )
    answer = refused(app)
    assert (answer.status_code, answer.headers.getlist("Retry-After")) == (303, ["7"])


def test_a_redirect_of_a_handler_has_no_fields_of_the_rejection(app):
    app.register_error_handler(429, lambda error: flask.redirect("/busy"))
    answer = refused(app)
    assert answer.status_code == 302
    assert "Retry-After" not in answer.headers


def test_a_handler_that_fails_lets_nothing_pass(app):
    def broken(error):
        raise LookupError("of the handler")

    app.register_error_handler(429, broken)
    app.testing = True
    answer = refused(app)
    assert (answer.status_code, answer.mimetype) == (429, "application/problem+json")


def test_a_status_without_an_exception_class_is_rendered(app):
    found = Client(render_refusals(app)(Problem(507, "Full."))).head("/")
    assert (found.status_code, found.data) == (507, b"")


def test_rejections_of_tokens_and_routes_are_rendered_by_the_app(app):
    @app.errorhandler(401)
    @app.errorhandler(405)
    def own(error):
        return {"own": error.code, "methods": error.valid_methods}, error.code

    refuse = render_refusals(app)
    inner = Authenticator(app.wsgi_app, algorithms=["HS256"], secret=SECRET, refuse=refuse)
    answer = Client(inner).get("/")
    assert answer.json == {"own": 401, "methods": None}
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="api"'
    routes = Dispatcher([Route("/a", app, methods=["GET", "PUT"])], refuse=refuse)
    answer = Client(routes).post("/a", headers={"Host": "localhost"})
    assert answer.json["own"] == 405
    assert "PUT" in answer.json["methods"]


def test_the_body_of_a_refused_request_is_left_alone(app):
    class Unread:
        def read(self, *size):
            raise AssertionError("the body of a refused request was read")

        readline = read

    environ = {**new_environ("POST"), "wsgi.input": Unread(), "CONTENT_LENGTH": "9"}
    assert Server().serve(render_refusals(app)(Problem(429)), environ).status[:3] == "429"
