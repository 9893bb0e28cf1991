"""What is kept in environ is bound to what it was made from, and made anew when that has changed.

A mount, a proxy fix or a rewriting middleware changes environ on the request's way in. What is
matched must be what the app then serves, wherever that happens.
"""

from __future__ import annotations

import json

import flask
import pytest
from django.http import HttpResponse
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

from wsgigate import (
    Authenticator,
    ClientAddress,
    Dispatcher,
    Fallback,
    Forwarder,
    Instance,
    Limiter,
    Logger,
    Maintenance,
    MaintenanceSwitch,
    Pool,
    RequestId,
    Route,
    StaleAnswers,
)
from wsgigate.auth.jwt import mint
from wsgigate.http.wsgi import CLAIMS, CLIENT, peer, peer_trusted
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import Backend, reply

SECRET = "at least thirty-two bytes of secret"
TOKEN = {"Authorization": f"Bearer {mint(SECRET, 'HS256', 'ann')}"}
PROXY = {"REMOTE_ADDR": "10.0.0.5"}
RAW = pytest.mark.parametrize("raw", [True, False], ids=["raw", "without a raw target"])


def tell(environ, start_response):
    """Answer with what an app sees."""
    body = {
        "script": environ.get("SCRIPT_NAME", ""),
        "path": environ["PATH_INFO"],
        "remote": environ.get("REMOTE_ADDR"),
        "peer": peer(environ),
        "trusted": peer_trusted(environ),
        "claims": environ.get(CLAIMS),
        "route": environ.get("wsgigate.route"),
        "params": environ.get("wsgigate.params"),
        "length": environ.get("CONTENT_LENGTH"),
        "request_id": environ.get("HTTP_X_REQUEST_ID"),
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(body).encode()]


def checked(inner, at="/admin"):
    """Return *app* behind a gateway that requires a token for the path *at*."""
    guarded = Authenticator(inner, algorithms=["HS256"], secret=SECRET)
    return Dispatcher([Route(at, guarded)], fallback=inner)


def asking(app):
    """A limiter that asks for the target before anything else does."""
    return Limiter(app, "1000/h", exempt={"paths": ["/health"]}, store="memory:")


def without_raw(app):
    """The server is one that does not hand on the raw target."""

    def call(environ, start_response):
        for key in ("RAW_URI", "REQUEST_URI"):
            environ.pop(key, None)
        return app(environ, start_response)

    return call


def client_of(app, raw):
    return Client(app if raw else without_raw(app))


def moving(app, old, new, *, also_raw=False):
    """A middleware that rewrites what paths begin with."""

    def call(environ, start_response):
        if environ["PATH_INFO"].startswith(old):
            environ["PATH_INFO"] = new + environ["PATH_INFO"].removeprefix(old)
            if also_raw:
                environ["RAW_URI"] = environ["REQUEST_URI"] = environ["PATH_INFO"]
        return app(environ, start_response)

    return call


def mounted(app, at="/api"):
    return DispatcherMiddleware(lambda *args: pytest.fail("not mounted"), {at: app})


STACKS = {
    "a mount": ("/api/admin", lambda app: mounted(app)),
    "a mount in a mount": ("/x/api/admin", lambda app: mounted(mounted(app), "/x")),
    "a mount of an app that asks": ("/api/admin", lambda app: mounted(asking(app))),
    "a rewrite": ("/v1/admin", lambda app: moving(app, "/v1", "")),
    "a rewrite to another path": ("/old", lambda app: moving(app, "/old", "/admin")),
    "a rewrite of the raw target too": (
        "/old",
        lambda app: moving(app, "/old", "/admin", also_raw=True),
    ),
    "a rewrite, then a mount": ("/v1/api/admin", lambda app: moving(mounted(app), "/v1", "")),
    "a mount, then a rewrite": ("/api/v1/admin", lambda app: mounted(moving(app, "/v1", ""))),
    "a prefix of a proxy": (
        "/admin",
        lambda app: ProxyFix(app, x_for=0, x_proto=0, x_prefix=1),
    ),
}


@RAW
@pytest.mark.parametrize("name", STACKS)
def test_the_checked_path_is_the_one_that_the_app_serves(name, raw):
    url, wrap = STACKS[name]
    client = client_of(asking(wrap(checked(tell))), raw)
    fields = {"X-Forwarded-Prefix": "/shop"}
    assert client.get(url, headers=fields).status_code == 401
    answer = client.get(url, headers=fields | TOKEN)
    assert answer.status_code == 200
    assert answer.json["path"] == "/admin"
    assert answer.json["claims"]["sub"] == "ann"
    assert answer.json["route"] == "/admin"


@RAW
@pytest.mark.parametrize("name", STACKS)
def test_paths_without_a_check_are_served_unchanged(name, raw):
    url, wrap = STACKS[name]
    client = client_of(asking(wrap(checked(tell, at="/secret"))), raw)
    assert client.get(url).json["path"] == "/admin"


@RAW
def test_an_outer_and_an_inner_check_each_have_their_own_path(raw):
    """The rewrite stands between two dispatchers, and each matches what it passes on."""
    inner = checked(tell, at="/inner")
    outer = checked(moving(inner, "/outer", "/inner"), at="/outer")
    client = client_of(asking(outer), raw)
    assert client.get("/outer").status_code == 401
    assert client.get("/inner").status_code == 401
    assert client.get("/outer", headers=TOKEN).json["path"] == "/inner"


@RAW
def test_a_limit_of_paths_counts_by_the_path_at_its_place(raw):
    limit = Limiter(tell, "1/h", exempt={"paths": ["/health"]}, store="memory:")
    client = client_of(asking(mounted(limit)), raw)
    assert [client.get("/api/health").status_code for _ in range(3)] == [200, 200, 200]
    assert [client.get("/api/health/x").status_code for _ in range(2)] == [200, 429]


def test_the_host_set_by_a_proxy_fix_is_matched():
    guarded = Authenticator(tell, algorithms=["HS256"], secret=SECRET)
    inner = Dispatcher([Route("/", guarded, host="shop.test")], fallback=tell)
    client = Client(asking(ProxyFix(inner, x_host=1)))
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"X-Forwarded-Host": "shop.test"}).status_code == 401


def test_a_forwarder_sends_what_a_rewrite_made_of_path_and_query():
    def hiding(app):
        def call(environ, start_response):
            environ["QUERY_STRING"] = "page=2"  # without a token that was in it
            return app(environ, start_response)

        return call

    with Backend(reply()) as backend:
        forwarder = Forwarder(Pool("a", [Instance(backend.url)]))
        client = Client(asking(mounted(moving(hiding(forwarder), "/v1", ""))))
        assert client.get("/api/v1/a%2Fb?token=t&page=2").status_code == 200
        assert backend.requests[0].target == "/a/b?page=2"


def blueprinted():
    app = flask.Flask("shop")
    auth = flask.Blueprint("auth", "auth", url_prefix="/auth")

    @auth.get("/admin")
    def admin():
        return tell_flask()

    app.register_blueprint(auth)
    return app


def tell_flask():
    return {"path": flask.request.path, "root": flask.request.root_path}


@RAW
def test_a_blueprint_is_checked_by_the_whole_path(raw):
    app = blueprinted()
    app.wsgi_app = asking(checked(app.wsgi_app, at="/auth/admin"))
    client = client_of(app, raw)
    assert client.get("/auth/admin").status_code == 401
    assert client.get("/auth//admin").status_code == 401
    assert client.get("/auth/admin", headers=TOKEN).json["path"] == "/auth/admin"


@RAW
def test_a_blueprint_is_checked_where_its_app_is_mounted(raw):
    app = blueprinted()
    app.wsgi_app = checked(app.wsgi_app, at="/auth/admin")
    client = client_of(asking(mounted(app, "/shop")), raw)
    assert client.get("/shop/auth/admin").status_code == 401
    answer = client.get("/shop/auth/admin", headers=TOKEN).json
    assert answer == {"path": "/auth/admin", "root": "/shop"}


def test_an_application_root_is_checked_as_the_app_serves_it():
    app = blueprinted()
    app.config["APPLICATION_ROOT"] = "/shop"
    app.wsgi_app = asking(checked(app.wsgi_app, at="/auth/admin"))
    client = app.test_client()
    assert client.get("/auth/admin").status_code == 401
    assert client.get("/auth/admin", headers=TOKEN).status_code == 200


def told_by_django(request):
    body = {"path": request.path, "path_info": request.path_info}
    return HttpResponse(json.dumps(body), content_type="application/json")


@RAW
def test_djangos_forced_script_name_changes_nothing_of_what_is_checked(django_app, raw):
    app = django_app({"admin": told_by_django}, FORCE_SCRIPT_NAME="/shop")
    outside = client_of(asking(checked(app)), raw)
    within = client_of(asking(mounted(checked(app), "/shop")), raw)
    for client, url in ((outside, "/admin"), (within, "/shop/admin")):
        assert client.get(url).status_code == 401
        answer = client.get(url, headers=TOKEN)
        assert answer.json == {"path": "/shop/admin", "path_info": "/admin"}


# the client's address


def test_a_proxy_fix_around_a_limiter_sets_the_address_that_is_counted():
    app = ProxyFix(asking(tell))
    answer = Client(app).get("/", headers={"X-Forwarded-For": "203.0.113.9"}, environ_base=PROXY)
    assert answer.json["peer"] == "203.0.113.9"


@pytest.mark.parametrize("hops", [1, 2])
def test_a_proxy_fix_inside_of_client_address_does_not_change_the_client(hops):
    app = ClientAddress(ProxyFix(tell, x_for=hops), trusted_proxies=["10.0.0.0/8"])
    fields = {"X-Forwarded-For": "6.6.6.6, 203.0.113.9, 10.0.0.7"}
    answer = Client(app).get("/", headers=fields, environ_base=PROXY).json
    assert answer["remote"] in ("203.0.113.9", "10.0.0.7")
    assert (answer["peer"], answer["trusted"]) == ("203.0.113.9", True)


def replacing(app, address):
    """A middleware that has another source for the client's address."""

    def call(environ, start_response):
        environ["REMOTE_ADDR"] = address
        return app(environ, start_response)

    return call


@pytest.mark.parametrize("trusted", [(), ("10.0.0.0/8",)])
def test_an_address_replaced_inside_of_client_address_is_the_client(trusted):
    stack = ClientAddress(replacing(tell, "198.51.100.4"), trusted_proxies=trusted)
    fields = {"X-Forwarded-For": "203.0.113.9"}
    answer = Client(stack).get("/", headers=fields, environ_base=PROXY).json
    assert (answer["peer"], answer["trusted"]) == ("198.51.100.4", False)


def test_limits_inside_count_by_the_address_that_was_replaced():
    addresses = iter(["198.51.100.4", "198.51.100.5", "198.51.100.4"])
    limit = Limiter(tell, "1/h", store="memory:")
    stack = ClientAddress(lambda *call: replacing(limit, next(addresses))(*call))
    client = Client(stack)
    assert [client.get("/").status_code for _ in range(3)] == [200, 200, 429]


def test_an_inner_client_address_decides_anew_for_a_replaced_peer():
    inner = ClientAddress(tell, trusted_proxies=["172.16.0.1"])

    def told(environ, start_response):
        environ["REMOTE_ADDR"] = "172.16.0.1"
        environ["HTTP_X_FORWARDED_FOR"] = "203.0.113.9"
        return inner(environ, start_response)

    answer = Client(ClientAddress(told)).get("/", environ_base=PROXY).json
    assert (answer["peer"], answer["trusted"]) == ("203.0.113.9", True)


def test_the_outermost_client_address_decides_where_nothing_was_replaced():
    stack = ClientAddress(ClientAddress(tell, trusted_proxies=["10.0.0.0/8"]))
    fields = {"X-Forwarded-For": "203.0.113.9"}
    answer = Client(stack).get("/", headers=fields, environ_base=PROXY).json
    assert (answer["peer"], answer["trusted"]) == ("10.0.0.5", False)


def test_a_client_set_in_the_environ_is_used():
    answer = Client(tell).get("/", environ_base={**PROXY, CLIENT: "203.0.113.9"}).json
    assert answer["peer"] == "203.0.113.9"


def test_x_forwarded_for_has_the_proxy_that_a_proxy_fix_has_hidden():
    with Backend(reply()) as backend:
        forwarder = Forwarder(Pool("a", [Instance(backend.url)]))
        app = ClientAddress(ProxyFix(forwarder), trusted_proxies=["10.0.0.0/8"])
        Client(app).get("/", headers={"X-Forwarded-For": "203.0.113.9"}, environ_base=PROXY)
        assert backend.requests[0].value("X-Forwarded-For") == "203.0.113.9, 10.0.0.5"


def test_a_request_id_of_a_replaced_peer_is_not_accepted():
    app = ClientAddress(replacing(RequestId(tell), "198.51.100.4"), trusted_proxies=["10.0.0.0/8"])
    answer = Client(app).get("/", headers={"X-Request-ID": "forged-1234567"}, environ_base=PROXY)
    assert answer.json["request_id"] != "forged-1234567"


# claims, routes and the rest


def test_claims_are_those_of_the_innermost_authenticator_that_let_pass():
    other = "another thirty-two bytes of a secret"
    optional = Authenticator(tell, algorithms=["HS256"], secret=other, required=False)

    def without_token(environ, start_response):
        environ.pop("HTTP_AUTHORIZATION")
        return optional(environ, start_response)

    outer = Authenticator(without_token, algorithms=["HS256"], secret=SECRET)
    assert Client(outer).get("/", headers=TOKEN).json["claims"] is None
    outer.app = optional
    assert Client(outer).get("/", headers=TOKEN).status_code == 401


def test_claims_remain_when_the_token_is_removed_or_exchanged():
    def exchanged(environ, start_response):
        environ["HTTP_AUTHORIZATION"] = "Bearer of-the-gateway"
        return tell(environ, start_response)

    app = Authenticator(exchanged, algorithms=["HS256"], secret=SECRET)
    assert Client(app).get("/", headers=TOKEN).json["claims"]["sub"] == "ann"


def test_a_request_dispatched_again_has_only_the_route_that_it_matches():
    stack = Dispatcher([Route("/items/{id}", lambda *call: again(*call))], fallback=tell)
    again = moving(stack, "/items/", "/elsewhere/")
    answer = Client(stack).get("/items/7").json
    assert answer["path"] == "/elsewhere/7"
    assert (answer["route"], answer["params"]) == (None, None)


def test_a_route_remains_if_an_inner_dispatcher_matches_none():
    inner = Dispatcher([Route("/other", tell)], fallback=tell)
    answer = Client(Dispatcher([Route("/items/{id}", inner)])).get("/items/7").json
    assert (answer["route"], answer["params"]) == ("/items/{id}", {"id": "7"})


def failing(environ, start_response):
    environ["wsgi.input"].read()
    environ["CONTENT_LENGTH"] = "3"
    start_response("503 Service Unavailable", [])
    return []


@RAW
def test_a_fallback_gets_the_original_path(raw):
    app = Fallback(asking(mounted(mounted(failing, "/v1"))), asking(tell))
    answer = client_of(app, raw).get("/api/v1/x", data="12345")
    assert (answer.json["script"], answer.json["path"]) == ("", "/api/v1/x")
    assert answer.json["length"] == "5"


def test_a_fallback_does_not_get_back_the_forged_fields_that_were_removed():
    app = Fallback(Dispatcher([Route("/", failing)], identity_fields=["X-Request-ID"]), tell)
    assert Client(app).get("/", headers={"X-Request-ID": "forged"}).json["request_id"] is None


def test_a_response_to_a_caller_is_not_cached_for_others_if_the_token_is_removed_inside():
    status = ["200 OK"]

    def app(environ, start_response):
        for key in ("HTTP_AUTHORIZATION", "HTTP_COOKIE"):
            environ.pop(key, None)
        start_response(status[0], [("Content-Type", "text/plain")])
        return [b"secret"]

    client = Client(StaleAnswers(app), use_cookies=False)
    for fields in (TOKEN, {"Cookie": "session=1"}):
        status[0] = "200 OK"
        assert client.get("/", headers=fields).text == "secret"
        status[0] = "503 Service Unavailable"
        assert client.get("/").status_code == 503


def test_the_secret_of_one_maintenance_does_not_pass_another():
    switch = MaintenanceSwitch(MemoryStore())
    switch.on("service:a")
    mine, theirs = ("X-Ops", "0123456789abcdef"), ("X-Team", "fedcba9876543210")
    inner = Maintenance(tell, switch, ["service:a"], allow_header=theirs)
    outer = Client(Maintenance(inner, switch, allow_header=mine))
    assert outer.get("/", headers=[mine]).status_code == 503
    assert outer.get("/", headers=[theirs]).status_code == 200
    inner = Maintenance(tell, switch, ["service:a"], allow_header=mine)
    assert (
        Client(Maintenance(inner, switch, allow_header=mine)).get("/", headers=[mine]).status_code
        == 200
    )


def test_the_log_has_the_path_of_the_original_request(capsys):
    lines = []

    class Stream:
        encoding = "utf-8"

        def write(self, text):
            lines.append(text)

        def flush(self):
            pass

        def isatty(self):
            return False

    log = Logger(asking(mounted(checked(tell))), stream=Stream())
    client_of(log, False).get("/api/admin")
    log.close()
    assert '"/api/admin"' in "".join(lines)
