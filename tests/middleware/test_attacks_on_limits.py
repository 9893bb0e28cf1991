"""Attacks on limits, by the ids of tests/test_catalogue.py."""

from __future__ import annotations

from wsgiref.util import setup_testing_defaults

import pytest

from wsgigate import Authenticator, ClientAddress, ConcurrencyLimiter, Dispatcher, Limiter, Route
from wsgigate.http.wsgi import close_body
from wsgigate.store import KEY_BYTES
from wsgigate.store.memory import MemoryStore


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


class Answering:
    """An app with a configurable response that counts its calls."""

    def __init__(self, status="200 OK"):
        self.status, self.asked = status, 0

    def __call__(self, environ, start_response):
        self.asked += 1
        if isinstance(self.status, Exception):
            raise self.status
        start_response(self.status, [("Content-Type", "text/plain")])
        return [b"answer"]


def ask(app, **environ):
    """Return the status and the fields of one answer."""
    environ = {"REMOTE_ADDR": "192.0.2.1", "PATH_INFO": "/", "SCRIPT_NAME": "", **environ}
    setup_testing_defaults(environ)
    begun = []
    answer = app(environ, lambda status, fields, *_: begun.extend([status, dict(fields)]))
    b"".join(answer)
    close_body(answer)
    return int(begun[0][:3]), begun[1]


def statuses(app, requests):
    return [ask(app, **environ)[0] for environ in requests]


SPOOFED = ["HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_CLIENT_IP"]


@pytest.mark.parametrize("field", SPOOFED)
@pytest.mark.parametrize("trusted", [[], ["10.0.0.0/8"]])
def test_k01_what_an_untrusted_peer_calls_itself_is_no_new_quota(field, trusted):
    limiter = Limiter(hello, "3 per hour", store=MemoryStore())
    app = ClientAddress(limiter, trusted_proxies=trusted)
    form = "for=10.9.8.{}" if field == "HTTP_FORWARDED" else "10.9.8.{}"
    requests = [{field: form.format(number)} for number in range(6)]
    assert statuses(app, requests) == [200] * 3 + [429] * 3


def test_k02_a_network_of_ipv6_is_one_caller():
    store = MemoryStore()
    app = Limiter(hello, "3 per hour", store=store)
    asked = [{"REMOTE_ADDR": f"2001:db8::{number:x}"} for number in range(1, 1001)]
    assert statuses(app, asked).count(200) == 3
    assert len(list(store.items(""))) == 1
    assert ask(app, REMOTE_ADDR="2001:db8:0:1::1")[0] == 200, "the next network is another"


def test_k03_an_address_written_as_ipv6_is_the_same_caller():
    app = Limiter(hello, "2 per hour", store=MemoryStore())
    asked = [{"REMOTE_ADDR": name} for name in ("::ffff:192.0.2.7", "192.0.2.7", "::ffff:c000:207")]
    assert statuses(app, asked) == [200, 200, 429]


def test_k04_a_route_is_one_however_its_path_is_written():
    app = Dispatcher(
        [Route("/api", Limiter(hello, "3 per hour", store=MemoryStore(), key=["address", "route"]))]
    )
    paths = ["/api/x", "/api/y", "/api/z/../x", "/api/x", "/api"]
    asked = [{"PATH_INFO": path, "QUERY_STRING": f"q={path}"} for path in paths]
    asked.append({"PATH_INFO": "/api/x", "REQUEST_METHOD": "HEAD"})
    found = statuses(app, asked)
    assert found.count(200) == 3
    assert found[-1] == 429


@pytest.mark.parametrize(
    "value", ["a\r\nb", "*", "a b", "x" * 4096, "/../", "\x00", "deny/mark", "\xff\xfe"]
)
def test_k06_whatever_a_client_sends_is_no_name_in_the_store(value):
    store = MemoryStore()
    app = Limiter(hello, "1 per hour", store=store, key="api-key")
    assert [ask(app, HTTP_X_API_KEY=value)[0] for _ in range(2)] == [200, 429]
    [(name, _)] = store.items("")
    assert len(name.encode()) <= KEY_BYTES
    assert value not in name
    assert name.isascii()
    assert name.isprintable()


class Unread:
    def read(self, size=-1):
        raise AssertionError("the body of a refused request is not read")


def test_k12_a_rejection_needs_no_lookup_and_reads_no_body():
    app = Answering()
    limiter = Limiter(app, "1 per hour", store=MemoryStore())
    request = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "1000000", "wsgi.input": Unread()}
    (first, _), (second, fields) = ask(limiter, **request), ask(limiter, **request)
    assert (first, second, app.asked) == (200, 429, 1)
    assert fields["Retry-After"].isdecimal()
    assert int(fields["Retry-After"]) >= 1


def test_k13_guessing_tokens_is_limited_before_they_are_looked_at():
    inner = Authenticator(hello, algorithms=["HS256"], secret="0123456789abcdef0123456789abcdef")
    looked = Answering()

    def counted(environ, start_response):
        looked.asked += 1
        return inner(environ, start_response)

    app = Limiter(counted, "3 per hour", store=MemoryStore())
    asked = [{"HTTP_AUTHORIZATION": f"Bearer a.b.{number}"} for number in range(50)]
    assert statuses(app, asked) == [401] * 3 + [429] * 47
    assert looked.asked == 3


@pytest.mark.parametrize("status", ["200 OK", "304 Not Modified", "404 Not Found", "500 Broken"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_k14_a_request_counts_when_it_is_let_in_whatever_becomes_of_it(status, method):
    app = Limiter(Answering(status), "2 per hour", store=MemoryStore())
    found = statuses(app, [{"REQUEST_METHOD": method}] * 3)
    assert found == [int(status[:3])] * 2 + [429]


def test_k14_a_request_that_fails_has_been_counted():
    app = Limiter(Answering(RuntimeError("broken")), "1 per hour", store=MemoryStore())
    with pytest.raises(RuntimeError):
        ask(app)
    assert ask(app)[0] == 429


def test_k15_a_limiter_made_anew_goes_on_where_the_last_one_was(tmp_path):
    url = f"lmdb:{tmp_path}/store"
    found = []
    for _ in range(3):
        limiter = Limiter(hello, "2 per hour", store=url)
        found.append(ask(limiter)[0])
        limiter.close()
    assert found == [200, 200, 429]


@pytest.mark.parametrize(
    "quota", ["0/s", "-1/s", "1/0s", "1000000001/s", "1 per 11 years", "1e9/s"]
)
def test_k16_a_quota_that_cannot_be_is_refused_before_anything_is_served(quota):
    with pytest.raises(ValueError, match="quota"):
        Limiter(hello, quota, store=MemoryStore())


def test_k17_a_place_is_free_again_when_the_client_leaves_in_the_middle():
    def endless(environ, start_response):
        start_response("200 OK", [])
        while True:
            yield b"more"

    limiter = ConcurrencyLimiter(endless, 1, store=MemoryStore())
    environ = {"REMOTE_ADDR": "192.0.2.1"}
    setup_testing_defaults(environ)
    for _ in range(3):
        begun = []
        body = limiter(environ.copy(), lambda status, *_: begun.append(status))  # noqa: B023
        next(iter(body))
        close_body(body)
        assert begun == ["200 OK"]
    limiter.close()
