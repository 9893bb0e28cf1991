"""Django's session as the guard of a service: who passes, and what the service sees and may do."""

from __future__ import annotations

import re

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.contrib.sessions.models import Session
from django.core.signals import request_finished, request_started
from django.db import connection
from django.http import HttpResponse
from django.test import Client, override_settings

from wsgigate import AnyOf, Identity
from wsgigate.auth.jwt import mint
from wsgigate.django import DjangoSession
from wsgigate.http.wsgi import CLAIMS, IDENTITY
from wsgigate.testing.fakes import Server, answers, new_environ

HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
TOKEN = "a" * 32


class Service:
    """The service behind the guard: notes what it is sent, and tries to change the session."""

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.headers: list[tuple[str, str]] = []

    def __call__(self, environ, start_response):
        self.requests.append(dict(environ))
        start_response("200 OK", list(self.headers))
        return [b"orders"]


@pytest.fixture
def service(db) -> Service:
    return Service()


@pytest.fixture
def user(db):
    return get_user_model().objects.create_user("ada", "ada@example.com", "secret")


def logged_in(user) -> str:
    """Return the cookie of a new session of *user*."""
    client = Client()
    client.force_login(user, "django.contrib.auth.backends.ModelBackend")
    return client.cookies[settings.SESSION_COOKIE_NAME].value


def send(app, session=None, method="GET", cookies="", **fields):
    environ = new_environ(method)
    parts = [f"sessionid={session}"] if session else []
    environ["HTTP_COOKIE"] = "; ".join([*parts, *([cookies] if cookies else [])])
    if not environ["HTTP_COOKIE"]:
        del environ["HTTP_COOKIE"]
    environ |= {f"HTTP_{name.upper()}": value for name, value in fields.items()}
    return Server().serve(app, environ)


def test_a_logged_in_user_is_the_identity(service, user) -> None:
    answer = send(DjangoSession(service), logged_in(user))
    assert answer.status == "200 OK"
    identity = service.requests[0][IDENTITY]
    assert (identity.subject, identity.scheme) == (str(user.pk), "session")
    assert dict(identity.claims) == {"sub": str(user.pk), "username": "ada"}
    assert dict(answer.headers)["Vary"] == "Cookie"


def test_the_identity_has_more_if_told(service, user) -> None:
    user.is_staff = True
    user.save()
    group = Group.objects.create(name="clerks")
    group.permissions.add(Permission.objects.get(codename="view_group"))
    user.groups.add(group)
    options = {"subject": "username", "email": True, "groups": True, "permissions": True}
    send(DjangoSession(service, **options), logged_in(user))
    identity = service.requests[0][IDENTITY]
    assert identity.subject == "ada"
    assert identity.scopes == {"auth.view_group"}
    assert identity.claims["email"] == "ada@example.com"
    assert (identity.claims["groups"], identity.claims["roles"]) == (("clerks",), ("staff",))


def test_anonymous_browsers_get_a_401(service) -> None:
    for session in (None, "made-up"):
        answer = send(DjangoSession(service), session, accept=HTML)
        assert answer.status.startswith("401")
        assert dict(answer.headers)["WWW-Authenticate"] == 'Session realm="api"'
    assert service.requests == []


def test_anonymous_browsers_that_open_a_page_are_redirected_if_told(service) -> None:
    app = DjangoSession(service, login_redirect=True)
    with override_settings(LOGIN_URL="/login/"):
        page = send(app, accept=HTML)
        assert page.status == "302 Found"
        assert dict(page.headers)["Location"] == "/login/?next=/"
        assert dict(page.headers)["Cache-Control"] == "no-store"
        for program in ({"accept": "application/json"}, {}, {"accept": HTML, "method": "POST"}):
            assert send(app, **program).status.startswith("401")
        upgrade = {"upgrade": "websocket", "connection": "Upgrade"}
        assert send(app, accept=HTML, **upgrade).status.startswith("401")


def test_anonymous_requests_pass_if_told_without_an_identity(service, user) -> None:
    app = DjangoSession(service, required=False)
    assert send(app).status == "200 OK"
    assert send(app, logged_in(user)).status == "200 OK"
    assert [IDENTITY in request for request in service.requests] == [False, True]
    assert service.requests[1][CLAIMS] == {"sub": str(user.pk), "username": "ada"}


def test_an_identity_from_elsewhere_is_removed(service) -> None:
    environ = new_environ() | {IDENTITY: "forged"}
    Server().serve(DjangoSession(service, required=False), environ)
    assert IDENTITY not in service.requests[0]


def test_a_token_outside_decides_where_the_session_is_optional(service, user) -> None:
    environ = new_environ() | {IDENTITY: Identity("robot", "bearer")}
    environ["HTTP_COOKIE"] = f"sessionid={logged_in(user)}; theme=dark"
    Server().serve(DjangoSession(service, required=False), environ)
    assert service.requests[0][IDENTITY].subject == "robot"
    assert service.requests[0]["HTTP_COOKIE"] == "theme=dark"
    environ = new_environ() | {IDENTITY: Identity("robot", "bearer")}
    assert Server().serve(DjangoSession(service), environ).status.startswith("401")


def test_an_inactive_user_is_refused(service, user) -> None:
    session = logged_in(user)
    user.is_active = False
    user.save()
    app = DjangoSession(service)
    assert send(app, session).status.startswith("401")
    with override_settings(
        AUTHENTICATION_BACKENDS=[
            "django.contrib.auth.backends.AllowAllUsersModelBackend",
            "django.contrib.auth.backends.ModelBackend",
        ]
    ):
        client = Client()
        client.force_login(user, "django.contrib.auth.backends.AllowAllUsersModelBackend")
        assert send(app, client.cookies["sessionid"].value).status.startswith("401")


def test_a_session_ends_with_a_change_of_the_password(service, user) -> None:
    session = logged_in(user)
    app = DjangoSession(service)
    assert send(app, session).status == "200 OK"
    user.set_password("other")
    user.save()
    answer = send(app, session)
    assert answer.status.startswith("401")
    assert any(name == "Set-Cookie" and "Max-Age=0" in value for name, value in answer.headers)
    assert not Session.objects.filter(session_key=session).exists()


def test_a_new_secret_key_renews_the_session_by_the_old_one(service, user) -> None:
    session = logged_in(user)
    with override_settings(SECRET_KEY="another " * 8, SECRET_KEY_FALLBACKS=[settings.SECRET_KEY]):
        answer = send(DjangoSession(service), session)
        assert answer.status == "200 OK"
        [cookie] = [value for name, value in answer.headers if name == "Set-Cookie"]
        renewed = re.match("sessionid=([^;]+)", cookie)[1]
        assert renewed != session
        assert send(DjangoSession(service), renewed).status == "200 OK"
    with override_settings(SECRET_KEY="another " * 8):
        assert send(DjangoSession(service), logged_in(user)).status == "200 OK"
        assert send(DjangoSession(service), "made-up").status.startswith("401")


def test_a_forged_request_ends_no_session_of_an_old_secret_key(service, user) -> None:
    session = logged_in(user)
    with override_settings(SECRET_KEY="another " * 8, SECRET_KEY_FALLBACKS=[settings.SECRET_KEY]):
        app = DjangoSession(service)
        answer = send(app, session, "POST")
        assert answer.status.startswith("403")
        [cookie] = [value for name, value in answer.headers if name == "Set-Cookie"]
        assert send(app, re.match("sessionid=([^;]+)", cookie)[1]).status == "200 OK"


@pytest.mark.parametrize("session", [None, "made-up"])
def test_without_a_user_a_credential_is_missing_for_alternatives(service, session) -> None:
    """An anonymous visitor may have a session, so it is no invalid credential."""
    assert send(AnyOf(service, [DjangoSession], anonymous=True), session).status == "200 OK"
    assert IDENTITY not in service.requests[0]


def test_a_sliding_session_lasts_while_the_service_is_used(service, user) -> None:
    with override_settings(SESSION_SAVE_EVERY_REQUEST=True):
        answer = send(DjangoSession(service), logged_in(user))
    assert any(name == "Set-Cookie" and "sessionid=" in value for name, value in answer.headers)


# What the service sees and may do.


def test_the_service_sees_neither_the_session_nor_the_token(service, user) -> None:
    cookies = f"csrftoken={TOKEN}; theme=dark; sessionid2=x"
    send(DjangoSession(service), logged_in(user), cookies=cookies, x_csrftoken=TOKEN)
    send(DjangoSession(service), logged_in(user), x_csrftoken=TOKEN)
    first, second = service.requests
    assert first["HTTP_COOKIE"] == "theme=dark; sessionid2=x"
    assert "HTTP_COOKIE" not in second
    assert "HTTP_X_CSRFTOKEN" not in first


@pytest.mark.parametrize("options", [{"exempt": {"paths": ["/"]}}, {"required": False}])
def test_nor_does_it_for_requests_that_pass_without_a_user(service, options) -> None:
    send(DjangoSession(service, **options), "made-up")
    assert "HTTP_COOKIE" not in service.requests[0]


@pytest.mark.parametrize("options", [{}, {"exempt": {"paths": ["/"]}}])
def test_the_service_cannot_set_or_clear_the_session(service, user, options) -> None:
    service.headers = [
        ("Set-Cookie", "sessionid=; Max-Age=0; Path=/"),
        ("set-cookie", "csrftoken=mine"),
        ("Set-Cookie", "=sessionid=mine"),
        ("Clear-Site-Data", '"cookies"'),
        ("Set-Cookie", "cart=7; Path=/"),
    ]
    answer = send(DjangoSession(service, **options), logged_in(user))
    fields = [field for field in answer.headers if field[0].lower() != "vary"]
    assert fields == [("Set-Cookie", "cart=7; Path=/")]


# Forged requests.

SAME = {"host": "testserver", "origin": "http://testserver"}


@pytest.mark.parametrize(
    ("method", "cookies", "fields", "options", "allowed"),
    [
        ("POST", "", {}, {}, False),
        ("POST", f"csrftoken={TOKEN}", {"x_csrftoken": TOKEN}, {}, True),
        ("DELETE", f"csrftoken={TOKEN}", {"x_csrftoken": TOKEN}, {}, True),
        ("POST", f"csrftoken={TOKEN}", {}, {}, False),
        ("POST", f"csrftoken={TOKEN}", {"x_csrftoken": "b" * 32}, {}, False),
        ("POST", "", {"x_csrftoken": TOKEN}, {}, False),
        ("POST", f"csrftoken={TOKEN}", {"x_csrftoken": TOKEN, **SAME}, {}, True),
        (
            "POST",
            f"csrftoken={TOKEN}",
            {"x_csrftoken": TOKEN, **SAME, "origin": "http://evil.example"},
            {},
            False,
        ),
        (
            "POST",
            f"csrftoken={TOKEN}",
            {"x_csrftoken": TOKEN, **SAME, "origin": "https://testserver"},
            {},
            False,
        ),
        ("POST", f"csrftoken={TOKEN}", {"x_csrftoken": TOKEN, "origin": "null"}, {}, False),
        (
            "POST",
            f"csrftoken={TOKEN}",
            {"x_csrftoken": TOKEN, **SAME, "origin": "https://app.trusted.example"},
            {},
            True,
        ),
        (
            "POST",
            f"csrftoken={TOKEN}",
            {"x_csrftoken": TOKEN, "sec_fetch_site": "cross-site"},
            {},
            False,
        ),
        ("POST", "", SAME, {"csrf": "origin"}, True),
        ("POST", "", {}, {"csrf": "origin"}, True),
        ("POST", "", {**SAME, "origin": "http://evil.example"}, {"csrf": "origin"}, False),
        ("POST", "", {"sec_fetch_site": "same-site"}, {"csrf": "origin"}, False),
        ("GET", "", {"sec_fetch_site": "cross-site"}, {}, True),
        ("MKCOL", "", {}, {}, False),
    ],
)
def test_only_pages_of_the_site_may_change_something(
    service, user, method, cookies, fields, options, allowed
) -> None:
    app = DjangoSession(service, **options)
    session = logged_in(user)
    with override_settings(
        ALLOWED_HOSTS=["testserver"], CSRF_TRUSTED_ORIGINS=["https://*.trusted.example"]
    ):
        answer = send(app, session, method, cookies, **fields)
    assert (answer.status[:3], len(service.requests)) == (("200", 1) if allowed else ("403", 0))


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [("http://testserver", True), ("http://evil.example", False), ("null", False), (None, True)],
)
def test_a_websocket_of_another_site_is_refused(service, user, origin, allowed) -> None:
    fields = {"host": "testserver", "upgrade": "websocket", "connection": "Upgrade"}
    if origin is not None:
        fields["origin"] = origin
    with override_settings(ALLOWED_HOSTS=["testserver"]):
        answer = send(DjangoSession(service), logged_in(user), **fields)
    assert answer.status[:3] == ("200" if allowed else "403")


def test_the_body_is_left_to_the_service(service, user) -> None:
    environ = new_environ("POST", b"csrfmiddlewaretoken=" + TOKEN.encode())
    environ["CONTENT_TYPE"] = "application/x-www-form-urlencoded"
    environ["HTTP_COOKIE"] = f"sessionid={logged_in(user)}; csrftoken={TOKEN}"
    environ["HTTP_X_CSRFTOKEN"] = TOKEN
    assert Server().serve(DjangoSession(service), environ).status == "200 OK"
    assert service.requests[0]["wsgi.input"].read().endswith(TOKEN.encode())


# The database, and Django around.


def test_the_signals_of_a_request_end_before_it_is_forwarded(user) -> None:
    seen = []
    note_start = lambda **_: seen.append("started")  # noqa: E731
    note_end = lambda **_: seen.append("finished")  # noqa: E731
    request_started.connect(note_start)
    request_finished.connect(note_end)
    try:
        service = answers([b"orders"])
        app = DjangoSession(lambda *called: seen.append("forwarded") or service(*called))
        send(app, logged_in(user))
        assert seen == ["started", "finished", "forwarded"]
        seen.clear()
        send(app, "made-up")
        assert seen == ["started", "finished"]
    finally:
        request_started.disconnect(note_start)
        request_finished.disconnect(note_end)


def test_a_failing_database_is_answered_with_503(service, user) -> None:
    session = logged_in(user)
    with connection.execute_wrapper(_fails):
        answer = send(DjangoSession(service), session)
    assert answer.status.startswith("503")
    assert service.requests == []


def _fails(execute, sql, params, many, context):
    from django.db import OperationalError

    raise OperationalError("the database is down")


def test_the_test_client_of_django_passes_the_guard(project, user) -> None:
    """As in Django itself, CSRF is checked if the client is told to."""
    project(
        {"": lambda request: HttpResponse("django")},
        WSGIGATE={
            "STORE": {"url": "memory:"},
            "ROUTES": [
                {
                    "path": "/api/orders",
                    "app": f"{__name__}:orders",
                    "middleware": [{"use": "wsgigate.django:DjangoSession"}],
                }
            ],
        },
    )
    client, strict = Client(), Client(enforce_csrf_checks=True)
    assert client.get("/").content == b"django"
    assert client.get("/api/orders").status_code == 401
    for each in (client, strict):
        each.force_login(user, "django.contrib.auth.backends.ModelBackend")
    assert client.get("/api/orders").content == str(user.pk).encode()
    assert client.post("/api/orders").status_code == 200
    assert strict.post("/api/orders").status_code == 403


def orders(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ[IDENTITY].subject.encode()]


@pytest.mark.parametrize(
    "entry",
    [
        "wsgigate.django.DjangoSession",
        ("wsgigate.AnyOf", {"of": [DjangoSession]}),
        {"use": "any-of", "of": [{"use": "wsgigate.django:DjangoSession"}]},
    ],
    ids=["alone", "an alternative", "an alternative in a table"],
)
def test_around_django_itself_the_guard_is_an_error(project, entry) -> None:
    from django.core.exceptions import ImproperlyConfigured

    project({}, WSGIGATE=[entry])
    with pytest.raises(ImproperlyConfigured, match="guards the routes of services"):
        Client().get("/")


def test_a_route_takes_tokens_and_sessions_and_refuses_all_others(project, user) -> None:
    secret = "a secret of the tests, thirty-two bytes or more"
    tokens = {"use": "authenticator", "algorithms": ["HS256"], "secret": secret, "required": False}
    route = {
        "path": "/api/orders",
        "app": f"{__name__}:orders",
        "middleware": [
            tokens,
            {"use": "wsgigate.django:DjangoSession", "required": False},
            {"use": "authorizer"},
        ],
    }
    project({}, WSGIGATE={"ROUTES": [route]})
    client = Client()
    assert client.get("/api/orders").status_code == 401
    token = {"Authorization": f"Bearer {mint(secret, 'HS256', 'robot', 60)}"}
    assert client.get("/api/orders", headers=token).content == b"robot"
    client.force_login(user, "django.contrib.auth.backends.ModelBackend")
    assert client.get("/api/orders").content == str(user.pk).encode()
    assert client.get("/api/orders", headers=token).content == b"robot"
    wrong = {"Authorization": "Bearer wrong"}
    assert client.get("/api/orders", headers=wrong).status_code == 401
