"""A proxy that hides the client addresses is detected and logged once."""

from __future__ import annotations

import logging

import flask
import pytest
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

from tests.support.objects import count_kept
from wsgigate import ClientAddress, ConcurrencyLimiter, Limiter, RequestId
from wsgigate.http.peer_watch import INSPECTED, PeerWatch, proxy_fix_in


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "wsgigate")
    return caplog


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["REMOTE_ADDR"].encode()]


def ask(app, client="203.0.113.1", peer="127.0.0.1", field="X-Forwarded-For"):
    fields = {} if client is None else {field: client}
    return Client(app).get("/", headers=fields, environ_base={"REMOTE_ADDR": peer}).status_code


def warnings(log):
    """Return the warnings; that of a rejection depends on the tests before, so it is left out."""
    return [
        record.getMessage()
        for record in log.records
        if record.levelno >= logging.WARNING and record.name != "wsgigate.refusals"
    ]


def limited(app=hello, quota="3/h", **options):
    return Limiter(app, quota, store="memory:", **options)


LIMITS = {
    "limiter": limited,
    "concurrency-limiter": lambda app=hello, **more: ConcurrencyLimiter(
        app, 3, store="memory:", **more
    ),
}


@pytest.mark.parametrize("make", LIMITS.values(), ids=LIMITS)
def test_a_proxy_fix_inside_is_named(log, make):
    app = make(RequestId(ProxyFix(hello)))
    for last in range(3):
        assert ask(app, f"203.0.113.{last}") == 200
    [text] = warnings(log)
    assert "ProxyFix is inside of it" in text
    assert 'ClientAddress(app, trusted_proxies=["127.0.0.1"])' in text


def test_a_proxy_fix_is_found_in_a_wrapped_flask_app(log):
    app = flask.Flask("shop")
    app.wsgi_app = ProxyFix(app.wsgi_app)
    assert proxy_fix_in(app)
    assert proxy_fix_in(limited(app))
    app.wsgi_app = limited(app.wsgi_app)
    assert proxy_fix_in(app)
    assert app.test_client().get("/").status_code == 404
    assert len(warnings(log)) == 1


def test_a_proxy_fix_around_the_limit_is_not_reported(log):
    app = flask.Flask("shop")
    app.wsgi_app = limited(app.wsgi_app)
    app.wsgi_app = ProxyFix(app.wsgi_app)
    client = app.test_client()
    statuses = [
        client.get("/", headers={"X-Forwarded-For": f"203.0.113.{last % 4}"}).status_code
        for last in range(13)
    ]
    assert statuses == [404] * 12 + [429]
    assert warnings(log) == []


def test_client_address_around_a_proxy_fix_is_not_reported(log):
    app = ClientAddress(limited(ProxyFix(hello)), trusted_proxies=["127.0.0.1"])
    statuses = [ask(app, f"203.0.113.{last % 4}") for last in range(13)]
    assert statuses == [200] * 12 + [429]
    assert warnings(log) == []


@pytest.mark.parametrize("peer", ["", "127.0.0.1", "::1", "10.0.0.5", "192.168.0.1", "fd00::1"])
@pytest.mark.parametrize("field", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "CF-Connecting-IP"])
def test_one_peer_that_forwards_for_several_clients_is_reported(log, peer, field):
    app = limited(quota="100/h")
    for last in range(20):
        ask(app, f"203.0.113.{last}", peer, field)
    [text] = warnings(log)
    assert text.startswith(
        "the limit 'default' counts all clients behind the proxy in front as one"
    )
    assert f'trusted_proxies=["{peer or "unix"}"]' in text
    assert field.lower() in text.lower()


def test_several_proxies_that_forward_for_more_clients_are_reported_once(log):
    app = limited(quota="100/h")
    for last in range(30):
        ask(app, f"203.0.113.{last}", f"10.0.0.{last % 3}")
    assert len(warnings(log)) == 1


@pytest.mark.parametrize(
    ("clients", "peers"),
    [
        ([None] * 5, ["127.0.0.1"]),  # nothing forwards
        (["203.0.113.1"] * 5, ["127.0.0.1"]),  # one client so far
        (["203.0.113.1", "203.0.113.2"], ["8.8.8.8"]),  # clients may send what they like
        ([f"203.0.113.{n}" for n in range(5)], [f"10.0.0.{n}" for n in range(5)]),
    ],
)
def test_peers_that_may_be_the_clients_are_not_reported(log, clients, peers):
    app = limited(quota="100/h")
    for number, client in enumerate(clients):
        ask(app, client, peers[number % len(peers)])
    assert warnings(log) == []


@pytest.mark.parametrize("key", ["header:X-Team", ["route", "subject"], lambda environ: "all"])
def test_a_limit_that_does_not_count_by_address_is_not_watched(log, key):
    app = limited(ProxyFix(hello), key=key)
    for last in range(5):
        ask(app, f"203.0.113.{last}")
    assert warnings(log) == []


@pytest.mark.parametrize("key", ["address", "subject|address", ["subject|address", "route"]])
def test_a_limit_that_may_count_by_address_is_watched(log, key):
    app = limited(ProxyFix(hello), key=key)
    ask(app)
    assert len([text for text in warnings(log) if "ProxyFix" in text]) == 1


def test_of_several_limits_the_outermost_one_warns(log):
    app = limited(limited(ProxyFix(hello), name="inner"), name="outer")
    for last in range(3):
        ask(app, f"203.0.113.{last}")
    [text] = warnings(log)
    assert "the limit 'outer'" in text


def test_the_watch_ends_after_a_number_of_requests(log):
    app = limited(quota="1000000/h")
    assert count_kept(PeerWatch, app) == 1
    for _ in range(INSPECTED + 1):
        ask(app, None)
    assert count_kept(PeerWatch, app) == 0
    app = limited()
    ask(app, None, "8.8.8.8")
    assert count_kept(PeerWatch, app) == 0


def test_a_client_address_without_trusted_proxies_behind_a_proxy_is_reported(log):
    app = ClientAddress(limited())
    statuses = [ask(app, f"203.0.113.{last}", "") for last in range(6)]
    assert statuses == [200, 200, 200, 429, 429, 429]
    [text] = warnings(log)
    assert text.startswith("all clients behind the proxy in front count as one: the peer unix")
    assert 'add "unix" to trusted_proxies (in a gateway file: gateway.trusted_proxies)' in text


def test_a_client_cannot_forge_a_line_of_the_log(log):
    app = limited(quota="100/h")
    for value in ("a", "b\x0bWARNING all is lost"):
        app(
            {
                "REQUEST_METHOD": "GET",
                "PATH_INFO": "/",
                "REMOTE_ADDR": "10.0.0.1",
                "HTTP_X_REAL_IP": value,
            },
            lambda *_: None,
        )
    [text] = warnings(log)
    assert "lost" not in text
