"""Requests that a limiter counts together, and those that it counts apart."""

from wsgiref.util import setup_testing_defaults

import pytest

from wsgigate.middleware.limiter import Limiter
from wsgigate.store.memory import MemoryStore


@pytest.fixture
def store():
    return MemoryStore()


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


def ask(app, address="192.0.2.1", **environ):
    """Return the status of one request."""
    environ = {"REMOTE_ADDR": address, **environ}
    setup_testing_defaults(environ)
    begun = []
    app(environ, lambda status, headers: begun.append(status))
    return int(begun[0].partition(" ")[0])


def test_callers_are_counted_by_the_key_alone(store):
    app = Limiter(hello, "1/m", store=store)
    assert ask(app, "2001:db8::1") == 200
    assert ask(app, "2001:db8::ffff", PATH_INFO="/other", REQUEST_METHOD="POST") == 429
    assert ask(app, "2001:db8:0:1::1") == 200
    spoofed = {"HTTP_X_FORWARDED_FOR": "198.51.100.7", "HTTP_FORWARDED": "for=198.51.100.7"}
    assert ask(app, "2001:db8::1", **spoofed) == 429
    assert ask(app, "192.0.2.9") == 200
    assert ask(app, "::ffff:192.0.2.9") == 429


@pytest.mark.parametrize(
    "key", ["k" * 5000, "日本" * 500, "\udcff lone", "a\r\nb *?[", "", "#" + "0" * 64]
)
def test_any_text_can_be_a_key(store, key):
    app = Limiter(hello, "1/m", store=store, key=lambda environ: key)
    assert [ask(app) for _ in range(2)] == [200, 429]
    other = Limiter(hello, "1/m", store=store, key=lambda environ: key + "x")
    assert ask(other) == 200


@pytest.mark.parametrize(
    "other",
    [
        {"name": "other"},
        {"quota": "3/m"},
        {"quota": "2/h"},
        {"algorithm": "fixed-window"},
    ],
)
def test_another_policy_on_the_same_store_counts_for_itself(store, other):
    settings = {"quota": "2/m", "algorithm": "token-bucket", "name": "default"}
    one = Limiter(hello, store=store, **settings)
    two = Limiter(hello, store=store, **(settings | other))
    for _ in range(2):
        assert ask(one) == ask(two) == 200
    assert ask(one) == 429


def test_the_same_policy_on_the_same_store_shares_its_counts(store):
    one, two = (Limiter(hello, "2/m", store=store) for _ in range(2))
    assert [ask(app) for app in (one, two, one, two)] == [200, 200, 429, 429]
