"""A limit for some paths and methods holds for every spelling that the app serves as them."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import flask
import pytest
from django.http import HttpResponse
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

from wsgigate import ConcurrencyLimiter, Limiter
from wsgigate.http.caller import listed_path, matching

LOGIN = {"paths": ["/login"], "methods": ["POST"]}


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def shop(**options):
    """A Flask app that serves more spellings than most."""
    app = flask.Flask("shop")
    app.url_map.strict_slashes = False

    @app.route("/login", methods=["GET", "POST"])
    @app.route("/LOGIN", methods=["POST"])
    def login():
        return "Welcome!"

    @app.get("/")
    def home():
        return "Hello!"

    app.wsgi_app = Limiter(app.wsgi_app, "2/h", store="memory:", **options)
    return app


SPELLINGS = ["/login", "/login/", "//login", "//login//", "/%6cogin", "/login%2F", "/%6Cogin/"]


def post(client, target):
    """Send a POST with *target* as it is: the test client would take //login for a host."""
    path, _, query = target.partition("?")
    environ = EnvironBuilder(method="POST", query_string=query).get_environ()
    environ["RAW_URI"] = environ["REQUEST_URI"] = target
    environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1")
    return int(run_wsgi_app(client, environ)[1][:3])


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_all_spellings_count_together(spelling):
    app = shop(only=LOGIN)
    assert [post(app, "/login") for _ in range(2)] == [200, 200]
    assert post(app, spelling) == 429
    assert post(app, spelling + "?next=/") == 429


def test_spellings_that_the_app_serves_are_all_counted():
    app = shop(only=LOGIN)
    served = [post(app, spelling) for spelling in ("/login/", "/login", "/login/")]
    assert served == [200, 200, 429]


def test_requests_that_only_does_not_select_are_not_counted():
    app = shop(only=LOGIN)
    client = app.test_client()
    assert [client.get("/").status_code for _ in range(4)] == [200] * 4
    assert [client.get("/login").status_code for _ in range(4)] == [200] * 4
    answer = client.post("/login")
    assert answer.headers["X-RateLimit-Remaining"] == "1"
    assert "RateLimit" not in client.get("/login").headers


def test_paths_are_case_sensitive_by_default():
    assert [post(shop(only=LOGIN), "/LOGIN") for _ in range(3)] == [200] * 3
    app = shop(only={**LOGIN, "ignore_case": True})
    assert [post(app, path) for path in ("/LOGIN", "/login", "/LOGIN/")] == [200, 200, 429]


def test_a_method_in_lower_case_is_the_one_that_flask_takes_it_for():
    app = Limiter(hello, "1/h", only=LOGIN, store="memory:")
    client = Client(app)
    environ = {"environ_overrides": {"REQUEST_METHOD": "post"}}
    assert [client.post("/login", **environ).status_code for _ in range(2)] == [200, 429]


def test_get_includes_head():
    only = {"methods": ["GET"], "paths": ["/search"]}
    client = Client(Limiter(hello, "1/h", only=only, store="memory:"))
    assert client.get("/search").status_code == 200
    assert client.head("/search").status_code == 429
    assert client.post("/search").status_code == 200


@pytest.mark.parametrize("at", ["/shop", ""])
def test_paths_are_relative_to_the_place_of_the_limiter(at):
    app = Limiter(hello, "1/h", only=LOGIN, store="memory:")
    client = Client(DispatcherMiddleware(hello, {at: app}) if at else app)
    answers = [client.post(f"{at}{path}").status_code for path in ("/login", "/login/", "/x")]
    assert answers == [200, 429, 200]


def test_a_blueprints_path_has_its_prefix():
    app = flask.Flask("shop")
    auth = flask.Blueprint("auth", "auth", url_prefix="/auth")
    auth.post("/login", strict_slashes=False)(lambda: "Welcome!")
    app.register_blueprint(auth)
    only = {"paths": ["/auth/*"]}
    app.wsgi_app = Limiter(app.wsgi_app, "2/h", only=only, store="memory:")
    client = app.test_client()
    paths = ("/auth/login", "/auth/login/", "/auth/login")
    assert [client.post(path).status_code for path in paths] == [200, 200, 429]


def test_djangos_views_with_and_without_a_slash(django_app):
    def login(request):
        return HttpResponse("Welcome!")

    app = django_app({"login": login, "login/": login}, APPEND_SLASH=True)
    client = Client(Limiter(app, "2/h", only=LOGIN, store="memory:"))
    paths = ("/login", "/login/", "/login", "/login/")
    assert [client.post(path).status_code for path in paths] == [200, 200, 429, 429]


def test_exempt_requests_are_not_counted_although_only_selects_them():
    exempt = {"addresses": ["10.0.0.0/8"]}
    client = Client(Limiter(hello, "1/h", only=LOGIN, exempt=exempt, store="memory:"))
    inside = {"environ_base": {"REMOTE_ADDR": "10.0.0.7"}}
    assert [client.post("/login", **inside).status_code for _ in range(2)] == [200, 200]
    assert [client.post("/login").status_code for _ in range(2)] == [200, 429]


def test_a_rule_must_match_as_well():
    only = {**LOGIN, "rule": lambda environ: "HTTP_X_BOT" in environ}
    client = Client(Limiter(hello, "1/h", only=only, store="memory:"))
    assert [client.post("/login").status_code for _ in range(2)] == [200, 200]
    bot = {"headers": {"X-Bot": "1"}}
    assert [client.post("/login", **bot).status_code for _ in range(2)] == [200, 429]


def test_only_may_be_a_function():
    only = matching(paths=["/login"])
    client = Client(Limiter(hello, "1/h", only=only, store="memory:"))
    assert [client.get(path).status_code for path in ("/login", "/login/", "/")] == [200, 429, 200]


def test_requests_at_a_time_are_counted_for_some_paths_alone():
    app = ConcurrencyLimiter(hello, 1, only={"paths": ["/report"]}, store="memory:")
    client = Client(app)
    held = client.get("/report")
    assert client.get("/report/").status_code == 429
    assert client.get("/other").status_code == 200
    held.close()
    assert client.get("/report/").status_code == 200


def test_listed_paths_are_counted_apart_in_every_spelling():
    key = ["address", listed_path(["/fast", "/slow/*"])]
    client = Client(Limiter(hello, "1/h", key=key, store="memory:"))
    paths = ("/fast", "/fast/", "/slow", "/slow/x", "/a", "/b")
    assert [client.get(path).status_code for path in paths] == [200, 429, 200, 429, 200, 429]


@pytest.mark.parametrize(
    ("only", "text"),
    [
        ({}, "only: paths, methods or a rule is required"),
        ({"paths": []}, "only: paths, methods or a rule is required"),
        ({"paths": "/login"}, "only: paths: a list of paths is expected, not the text '/login'"),
        ({"paths": ["login"]}, "only: paths: 'login': expected a path such as"),
        ({"methods": "POST"}, "only: methods is a list"),
        ({"methods": ["post"]}, "only: methods: 'post' is not a method in upper case"),
        ({"methods": [None]}, "only: methods: None is not a method"),
        ({"paths": ["/a"], "ignore_case": "yes"}, "only: ignore_case is True or False"),
        ({"rule": 7}, "only: rule is a function, not 7"),
        ({"path": ["/a"]}, "only has no path; its keys are ignore_case, methods, paths, rule"),
        ("/login", "only is a function, or a table of what is counted, not '/login'"),
    ],
)
def test_a_wrong_selection_is_refused(only, text):
    with pytest.raises(ValueError, match=f"^{text}"):
        Limiter(hello, "1/h", only=only)
    with pytest.raises(ValueError, match=f"^{text}"):
        ConcurrencyLimiter(hello, 1, only=only)
