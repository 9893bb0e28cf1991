"""The session of a Flask app in front of a service: login, forgery, and the session's cookie."""

from __future__ import annotations

import sys
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from flask import Flask, g, request, session
from werkzeug import Response
from werkzeug.test import Client

from wsgigate import AnyOf, Identity
from wsgigate.config.errors import ConfigError
from wsgigate.flask import FlaskSession, MissingCredentials, WsgiGate
from wsgigate.http.wsgi import CLAIMS, IDENTITY
from wsgigate.testing.backend import Backend, reply

EVIL = {"Origin": "https://evil.example"}


async def coroutine():
    return False


def monolith(**config):
    app = Flask("monolith")
    app.config.update(SECRET_KEY="tests only", **config)

    @app.get("/login/<name>")
    def login(name):
        session["user_id"] = name
        session.permanent = "permanent" in request.args
        return "welcome"

    return app


def shown(environ, start_response):
    """Respond with the caller, and what the service behind would see."""
    identity = environ.get(IDENTITY)
    caller = "nobody" if identity is None else f"{identity.subject} by {identity.scheme}"
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode()
    text = f"{caller}; cookies: {environ.get('HTTP_COOKIE')}; body: {body}"
    return Response(text)(environ, start_response)


def guarded(app=shown, flask_app=None, **options):
    """Return a client that is logged in as ada, and the client of the guarded app."""
    flask_app = flask_app or monolith()
    inside = FlaskSession(app, flask_app, **options)

    def whole(environ, start_response):
        path = environ["PATH_INFO"]
        return (inside if path.startswith("/api") else flask_app)(environ, start_response)

    client = Client(whole)
    client.get("/login/ada")
    return client


def test_a_user_who_is_logged_in_is_the_caller():
    client = guarded()
    assert client.get("/api").text == "ada by session; cookies: None; body: "


def test_the_session_cookie_is_hidden_and_other_cookies_pass():
    client = guarded()
    client.set_cookie("theme", "dark")
    assert "cookies: theme=dark;" in client.get("/api").text


def test_without_a_session_the_response_is_401():
    flask_app = monolith()
    answer = Client(FlaskSession(shown, flask_app)).get("/api")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Session realm="api"'


def test_without_a_session_alternatives_may_let_anonymous_requests_pass():
    session_of_app = partial(FlaskSession, flask_app=monolith())
    client = Client(AnyOf(shown, [session_of_app], anonymous=True))
    assert client.get("/api").text.startswith("nobody")


def test_a_session_that_another_key_signed_is_none():
    other = Flask("other")
    other.secret_key = "another key"
    with other.test_request_context():
        interface: Any = other.session_interface
        forged = interface.get_signing_serializer(other).dumps({"user_id": "root"})
    client = Client(FlaskSession(shown, monolith()))
    client.set_cookie("session", forged)
    assert client.get("/api").status_code == 401


def test_the_apps_error_handlers_render_the_rejection():
    flask_app = monolith()
    flask_app.register_error_handler(MissingCredentials, lambda error: ("log in, please", 401))
    assert Client(FlaskSession(shown, flask_app)).get("/api").text == "log in, please"


def test_browsers_are_redirected_to_the_login():
    client = Client(FlaskSession(shown, monolith(), login_url="/login"))
    page = {"Accept": "text/html"}
    answer = client.get("/api/a b?c=d&e", headers=page)
    assert answer.status_code == 302
    assert answer.headers["Location"] == "/login?next=%2Fapi%2Fa%2520b%3Fc%3Dd%26e"
    away = client.get("/", headers=page, environ_overrides={"PATH_INFO": "//evil.example"})
    assert away.headers["Location"] == "/login?next=%2Fevil.example"
    assert client.get("/api").status_code == 401
    assert client.post("/api", headers=page).status_code == 401


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", EVIL, 403),
        ("DELETE", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("GET", {**EVIL, "Upgrade": "websocket", "Connection": "Upgrade"}, 403),
        ("POST", {"Origin": "http://localhost"}, 200),
        ("POST", {"Origin": "https://www.example.com"}, 200),
        ("POST", {}, 200),
        ("GET", EVIL, 200),
    ],
)
def test_a_page_of_another_site_changes_nothing(method, headers, status):
    client = guarded(trusted_origins=["https://www.example.com"])
    assert client.open("/api", method=method, headers=headers).status_code == status


def test_a_host_that_the_app_does_not_trust_is_rejected_as_by_the_app():
    flask_app = monolith(TRUSTED_HOSTS=["localhost"])
    cookie = guarded(flask_app=flask_app).get_cookie("session")
    assert cookie is not None
    client = guarded(flask_app=flask_app)
    assert client.get("/api").status_code == 200
    other = {"Host": "evil.example", "Cookie": f"session={cookie.value}"}
    statuses = [
        Client(app, use_cookies=False).get("/login/ada", headers=other).status_code
        for app in (flask_app, FlaskSession(shown, flask_app))
    ]
    assert statuses[0] == statuses[1]  # 200 before Flask 3.1


def test_a_public_service_gets_requests_of_other_sites_without_a_session():
    client = Client(FlaskSession(shown, monolith(), required=False))
    assert client.post("/api", headers=EVIL).text.startswith("nobody;")


def test_a_token_against_forgery_may_be_required():
    def token_is_right():
        assert request.form == {}, "the body is the service's"
        if "X-CSRFToken" not in request.headers:
            raise LookupError
        return request.headers["X-CSRFToken"] == session["user_id"]

    client = guarded(check_csrf=token_is_right)
    assert client.get("/api").status_code == 200
    form = {"data": {"a": "b"}}
    assert client.post("/api", **form).status_code == 403
    assert client.post("/api", headers={"X-CSRFToken": "x"}, **form).status_code == 403
    assert client.post("/api", headers={"X-CSRFToken": "ada"}, **form).text.endswith("body: a=b")


@pytest.mark.parametrize(
    ("answer", "status"), [(True, 200), (None, 200), (False, 403), (0, 403), ("", 403)]
)
def test_a_check_of_forgery_rejects_by_any_false_value(answer, status):
    assert guarded(check_csrf=lambda: answer).post("/api").status_code == status


@pytest.mark.parametrize(
    "fields",
    [
        [("Set-Cookie", "session=; Max-Age=0; Path=/")],
        [("Set-Cookie", "theme=dark"), ("Set-Cookie", "=session=stolen")],
        [("Clear-Site-Data", '"*"')],
    ],
)
def test_the_service_cannot_change_the_session(fields):
    def service(environ, start_response):
        response = Response("changed")
        response.headers.extend(fields)
        return response(environ, start_response)

    client = guarded(service)
    answer = client.get("/api")
    assert answer.headers["Vary"] == "Cookie"
    assert [each for each in answer.headers.getlist("Set-Cookie") if "session" in each] == []
    assert "Clear-Site-Data" not in answer.headers
    assert client.get("/api").status_code == 200


def test_a_permanent_session_is_renewed_and_another_is_not():
    flask_app = monolith(PERMANENT_SESSION_LIFETIME=timedelta(hours=1))
    client = guarded(flask_app=flask_app)
    assert "Set-Cookie" not in client.get("/api").headers
    client.get("/login/ada?permanent")
    renewed = client.get("/api").headers["Set-Cookie"]
    assert renewed.startswith("session=")
    assert "Expires=" in renewed


@pytest.mark.parametrize(
    ("user", "caller"),
    [
        ("bob", "bob by session"),
        (7, "7 by session"),
        (UUID(int=7), f"{UUID(int=7)} by session"),
        ({"sub": "bob", "roles": ["admin"]}, "bob by session"),
        (Identity("bob", "ticket"), "bob by ticket"),
        (SimpleNamespace(is_authenticated=True, get_id=lambda: "bob"), "bob by session"),
        (SimpleNamespace(is_authenticated=False, get_id=lambda: "bob"), None),
        (None, None),
        (False, None),
        ("", None),
    ],
)
def test_a_function_may_load_the_user(user, caller):
    def load():
        assert session["user_id"] == "ada"
        assert not g.get("unknown")
        return user

    answer = guarded(load_user=load).get("/api")
    assert answer.status_code == (401 if caller is None else 200)
    assert caller is None or answer.text.startswith(f"{caller};")


def test_a_value_that_is_no_user_is_an_error():
    client = guarded(load_user=lambda: True)
    with pytest.raises(TypeError, match="load_user returns a subject"):
        client.get("/api")


def test_the_current_user_of_flask_login_is_the_caller(monkeypatch):
    user = SimpleNamespace(is_authenticated=True, get_id=lambda: "42")
    monkeypatch.setitem(sys.modules, "flask_login", SimpleNamespace(current_user=user))
    flask_app = monolith()
    flask_app.login_manager = object()
    client = guarded(flask_app=flask_app)
    client.set_cookie("remember_token", "secret")
    assert client.get("/api").text == "42 by session; cookies: None; body: "
    user.is_authenticated = False
    assert client.get("/api").status_code == 401


def test_an_optional_guard_keeps_the_caller_of_a_token():
    token = Identity("robot", "bearer")
    client = guarded(required=False)
    answer = client.get("/api", environ_overrides={IDENTITY: token})
    assert answer.text == "robot by bearer; cookies: None; body: "
    assert guarded().get("/api", environ_overrides={IDENTITY: token}).text.startswith("ada")


@pytest.mark.parametrize("key", [IDENTITY, CLAIMS])
def test_a_session_identity_that_was_there_before_is_removed(key):
    client = Client(FlaskSession(shown, monolith(), required=False))
    before = {key: Identity("root", "session")}
    assert client.get("/api", environ_overrides=before).text.startswith("nobody;")


def test_exempt_requests_and_preflights_pass_without_an_identity_and_without_the_cookie():
    client = guarded(exempt={"paths": ["/api/health"]})
    assert client.get("/api/health").text == "nobody; cookies: None; body: "
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert client.options("/api", headers=preflight).text == "nobody; cookies: None; body: "


def test_an_app_without_a_secret_key_is_an_error_that_names_the_cure():
    with pytest.raises(RuntimeError, match="'bare' has no sessions: set its SECRET_KEY"):
        Client(FlaskSession(shown, Flask("bare"))).get("/api")
    with pytest.raises(RuntimeError, match="FlaskSession has no Flask app"):
        Client(FlaskSession(shown)).get("/api")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flask_app": 7}, "flask_app: expected a Flask app"),
        ({"flask_app": "tests.flask.nothing:app"}, r"tests\.flask\.nothing"),
        ({"load_user": 7}, "load_user: expected a function"),
        ({"load_user": "tests.flask.nothing:user"}, "load_user: "),
        ({"check_csrf": 7}, "check_csrf: expected a function"),
        ({"check_csrf": coroutine}, "check_csrf: expected a function, not a coroutine function"),
        ({"load_user": coroutine}, "load_user: expected a function, not a coroutine function"),
        ({"user_key": 7}, "user_key: expected a text"),
        ({"login_url": 7}, "login_url: expected a path"),
        ({"login_url": "login"}, "login_url: expected a path"),
        ({"login_url": "/login#form"}, "login_url: expected a path"),
        ({"login_url": "/login\r\nX: y"}, "login_url: expected a path"),
        ({"login_url": "javascript:alert(1)"}, "login_url: expected a path"),
        ({"required": "no"}, "required is True or False"),
        ({"trusted_origins": ["www.example.com"]}, "trusted_origins: expected origins"),
        ({"realm": 'a "b"'}, "realm: "),
        ({"exempt": {"path": "/x"}}, "exempt has no path"),
    ],
)
def test_a_wrong_argument_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        FlaskSession(shown, **options)


def test_around_the_app_itself_it_is_an_error_that_names_the_cure():
    app = monolith(WSGIGATE_MIDDLEWARE=[{"use": "wsgigate.flask:FlaskSession"}])
    with pytest.raises(ConfigError, match=r"WSGIGATE_MIDDLEWARE\[0\]: .* middleware of a route"):
        WsgiGate(app)


def test_a_route_of_the_extension_is_behind_the_session_of_the_app():
    service = reply(b"orders", fields=[("Set-Cookie", "session=; Max-Age=0; Path=/")])
    with Backend(service) as backend:
        app = monolith(
            WSGIGATE_SERVICES={"orders": {"instances": [backend.url]}},
            WSGIGATE_GATEWAY={"identity": {"X-User": "subject"}},
            WSGIGATE_ROUTES=[
                {
                    "path": "/api/orders",
                    "service": "orders",
                    "middleware": [{"use": "wsgigate.flask:FlaskSession"}],
                }
            ],
        )
        app.testing = True
        gate = WsgiGate(app)
        client = app.test_client()
        assert client.get("/api/orders").status_code == 401
        client.get("/login/ada")
        for _ in range(2):
            assert client.get("/api/orders", headers={"X-User": "root"}).text == "orders"
        [first, second] = backend.requests
        gate.close()
    for received in (first, second):
        assert received.value("X-User") == "ada"
        assert received.value("Cookie") is None
