"""The extension: its settings, the gateway around the app, and its test client."""

from __future__ import annotations

import pytest
from flask import Flask, session

from wsgigate import Identity
from wsgigate.config.errors import ConfigError
from wsgigate.flask import LimitExceeded, WsgiGate, get_identity, requires
from wsgigate.testing.backend import Backend, reply

LIMITED = {"WSGIGATE_MIDDLEWARE": [{"use": "limiter", "quota": "1/d"}]}


def made(gate=None, name="shop", **config):
    app = Flask(name)
    app.config.update(config)
    app.add_url_rule("/", "home", lambda: "home")
    (gate or WsgiGate()).init_app(app)
    app.testing = True
    return app


def test_the_settings_are_the_tables_of_a_file():
    with Backend(reply(b"the service")) as backend:
        app = made(
            WSGIGATE_SERVICES={"orders": {"instances": (backend.url,)}},
            WSGIGATE_ROUTES=[{"path": "/api/orders", "service": "orders"}],
            **LIMITED,
        )
        client = app.test_client()
        assert client.get("/api/orders/7").text == "the service"
        assert client.get("/").status_code == 429


def test_a_file_may_describe_the_gateway(tmp_path):
    (tmp_path / "gateway.toml").write_text(
        'store.url = "memory:"\nmiddleware = [{ use = "limiter", quota = "1/d" }]\n'
    )
    client = made(WSGIGATE_FILE=str(tmp_path / "gateway.toml")).test_client()
    assert [client.get("/").status_code for _ in range(2)] == [200, 429]


def test_an_app_without_settings_is_not_wrapped():
    app = Flask("shop")
    WsgiGate(app)
    assert app.wsgi_app == Flask.wsgi_app.__get__(app)


def test_a_factory_makes_several_apps_with_counts_of_their_own():
    gate = WsgiGate()
    gate.on_limit(lambda error: (f"{error.retry_after > 0}: slow down", 429))
    first, second = (made(gate, name, **LIMITED).test_client() for name in ("one", "two"))
    assert [first.get("/").status_code for _ in range(2)] == [200, 429]
    assert second.get("/").status_code == 200
    assert second.get("/").text == "True: slow down"
    gate.close()


@pytest.mark.parametrize("another", [True, False])
def test_a_second_init_app_is_an_error(another):
    gate = WsgiGate()
    app = made(gate, **LIMITED)
    with pytest.raises(RuntimeError, match=r"init_app\(\) was called twice for the app 'shop'"):
        (WsgiGate() if another else gate).init_app(app)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"WSGIGATE_MIDDLEWARES": []},
            'WSGIGATE_MIDDLEWARES: is not a known key; did you mean "WSGIGATE_MIDDLEWARE"?',
        ),
        ({"WSGIGATE_X": 1}, "WSGIGATE_X: is not a known key; known keys: WSGIGATE_GATEWAY, "),
        (
            {"WSGIGATE_MIDDLEWARE": [{"use": "limiter", "quota": "1/d", "algoritm": "x"}]},
            'WSGIGATE_MIDDLEWARE[0].algoritm: is not a known key; did you mean "algorithm"?',
        ),
        (
            {"WSGIGATE_ROUTES": [{"path": "/a", "service": "b"}]},
            'WSGIGATE_ROUTES[0].service: there is no service "b"',
        ),
        ({"WSGIGATE_MIDDLEWARE": [{"use": "limiter", "quota": "1/x"}]}, "WSGIGATE_MIDDLEWARE[0]"),
        ({"WSGIGATE_REALM": 7}, "WSGIGATE_REALM: expected"),
        ({"WSGIGATE_GATEWAY": {"fallback": "a:b"}}, "WSGIGATE_GATEWAY.fallback: the fallback is"),
        (
            {"WSGIGATE_FILE": "gateway.toml", "WSGIGATE_ROUTES": []},
            "WSGIGATE_ROUTES: is not allowed with WSGIGATE_FILE",
        ),
        ({"WSGIGATE_FILE": "/nowhere/gateway.toml"}, "/nowhere/gateway.toml: cannot be read"),
    ],
)
def test_a_wrong_setting_is_named_by_its_key(config, message):
    with pytest.raises(ConfigError) as caught:
        made(**config)
    assert message in str(caught.value)


def test_all_errors_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        made(WSGIGATE_MIDDLEWARE=[{"use": "limiter"}, {"use": "limitr"}])
    assert [key for key, _ in caught.value.errors] == [
        "WSGIGATE_MIDDLEWARE[0].quota",
        "WSGIGATE_MIDDLEWARE[1].use",
    ]


def test_variables_of_the_environment_are_substituted_as_in_a_file(monkeypatch):
    monkeypatch.setenv("QUOTA", "1/d")
    client = made(WSGIGATE_MIDDLEWARE=[{"use": "limiter", "quota": "${QUOTA}"}]).test_client()
    assert [client.get("/").status_code for _ in range(2)] == [200, 429]


def test_the_apps_error_handlers_render_rejections():
    app = made(**LIMITED)
    app.register_error_handler(429, lambda error: (type(error).__name__, 429))
    client = app.test_client()
    client.get("/")
    assert client.get("/").text == LimitExceeded.__name__


def test_a_test_client_gets_the_exceptions_of_views():
    app = made(**LIMITED)
    app.add_url_rule("/bad", "bad", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        app.test_client().get("/bad")


def test_in_production_the_app_responds_with_500_itself():
    app = made(**LIMITED)
    app.testing = False
    app.add_url_rule("/bad", "bad", lambda: 1 / 0)
    app.register_error_handler(500, lambda error: ("the app's page", 500))
    assert app.test_client().get("/bad").text == "the app's page"


# The test client with an identity.

ADA = Identity("ada", "bearer", claims={"sub": "ada", "org": "acme"}, scopes={"orders:write"})
CLOSED = {
    "WSGIGATE_MIDDLEWARE": [{"use": "authenticator", "algorithms": ["HS256"], "secret": "s" * 32}]
}


def protected(**config):
    app = made(**config)

    @app.post("/orders")
    @requires("orders:write")
    def order():
        session["seen"] = True
        return f"{get_identity().subject} {get_identity().claims['org']}"

    return app


def test_a_test_client_with_an_identity_needs_no_token():
    app = protected(**CLOSED, SECRET_KEY="tests only")
    client = app.test_client(identity=ADA)
    assert client.post("/orders").text == "ada acme"
    with client.session_transaction() as found:
        assert found["seen"]
    client.identity = Identity("bob", "bearer")
    assert client.post("/orders").status_code == 403
    client.identity = None
    assert client.post("/orders").status_code == 401
    assert app.test_client().post("/orders").status_code == 401


def test_only_an_identity_is_one():
    with pytest.raises(TypeError, match="identity: expected an Identity, not 'ada'"):
        made().test_client(identity="ada")


def test_an_identity_in_the_environ_of_a_request_is_removed_by_the_authenticator():
    app = protected(**CLOSED)
    for key in ("wsgigate.identity", "wsgigate.claims"):
        answer = app.test_client().post("/orders", environ_overrides={key: ADA})
        assert answer.status_code == 401


@pytest.mark.parametrize(
    "late",
    [
        {"WSGIGATE_MIDDLEWARE": [{"use": "limiter", "quota": "9/d"}]},
        {"WSGIGATE_LIMIT_ENABLED": None},
        {"WSGIGATE_NAME": "x"},
    ],
)
def test_a_setting_that_changes_after_init_app_is_an_error_of_every_request(late):
    app = Flask("late")
    app.config["WSGIGATE_LIMIT_ENABLED"] = False
    app.add_url_rule("/", view_func=lambda: "hello")
    WsgiGate(app)
    app.config.update(late)
    client = app.test_client()
    assert [client.get("/").status_code for _ in range(2)] == [500, 500]
    app.testing = True
    with pytest.raises(RuntimeError, match=f"{next(iter(late))} changed after init_app"):
        client.get("/")


def test_a_list_of_a_setting_that_grows_after_init_app_is_an_error_too():
    app = Flask("late")
    app.config["WSGIGATE_MIDDLEWARE"] = []
    app.testing = True
    WsgiGate(app)
    assert app.test_client().get("/").status_code == 404
    other = Flask("late")
    other.config["WSGIGATE_MIDDLEWARE"] = []
    other.testing = True
    WsgiGate(other)
    other.config["WSGIGATE_MIDDLEWARE"].append({"use": "limiter", "quota": "9/d"})
    with pytest.raises(RuntimeError, match="WSGIGATE_MIDDLEWARE changed"):
        other.test_client().get("/")
