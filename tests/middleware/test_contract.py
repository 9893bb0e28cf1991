"""Every middleware keeps the WSGI contract, and the public suite detects violations."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jwt
import pytest

from tests.support.logs import silence
from wsgigate.auth.message_signature import Signer
from wsgigate.coordination.api_keys import ApiKeys
from wsgigate.coordination.maintenance import MaintenanceSwitch
from wsgigate.http.problem import Problem
from wsgigate.middleware.all_of import AllOf
from wsgigate.middleware.any_of import AnyOf
from wsgigate.middleware.api_key import ApiKeyAuthenticator
from wsgigate.middleware.authenticator import Authenticator
from wsgigate.middleware.basic import BasicAuthenticator
from wsgigate.middleware.body_limit import BodyLimit
from wsgigate.middleware.breaker import Breaker
from wsgigate.middleware.client_address import ClientAddress
from wsgigate.middleware.client_certificate import ClientCertificate
from wsgigate.middleware.concurrency import ConcurrencyLimiter
from wsgigate.middleware.cors import Cors
from wsgigate.middleware.fallback import Fallback
from wsgigate.middleware.faults import FaultRules, Faults
from wsgigate.middleware.forward_auth import ForwardAuth
from wsgigate.middleware.guard import Guard
from wsgigate.middleware.introspection import IntrospectionAuthenticator
from wsgigate.middleware.limiter import Limiter
from wsgigate.middleware.logger import Logger
from wsgigate.middleware.maintenance import Maintenance
from wsgigate.middleware.message_signature import SignatureAuthenticator
from wsgigate.middleware.metrics import Metrics
from wsgigate.middleware.mirror import Mirror
from wsgigate.middleware.request_id import RequestId
from wsgigate.middleware.shedder import Shedder, SheddingRules
from wsgigate.middleware.splitter import Splitter
from wsgigate.middleware.stale import StaleAnswers
from wsgigate.middleware.webhooks import WebhookVerifier
from wsgigate.rules.circuit import CircuitRules
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import check_middleware

NEVER = CircuitRules(connect_failures=None, failure_rate=None)
SECRET = "a secret of the tests, thirty-two bytes or more"


def authenticator(app):
    token = jwt.encode({"sub": "u1", "exp": int(time.time()) + 60}, SECRET, "HS256")
    checked = Authenticator(app, algorithms=["HS256"], secret=SECRET)

    def with_token(environ, start_response):
        environ["HTTP_AUTHORIZATION"] = f"Bearer {token}"
        return checked(environ, start_response)

    return with_token


def api_key(app):
    keys = ApiKeys(MemoryStore())
    key, _ = keys.create("acme")
    checked = ApiKeyAuthenticator(app, keys)

    def with_key(environ, start_response):
        environ["HTTP_X_API_KEY"] = key
        return checked(environ, start_response)

    return with_key


optional_keys = partial(ApiKeyAuthenticator, keys=ApiKeys(MemoryStore()), required=False)


# name, middleware, whether it returns the app's own iterable
MIDDLEWARES: list[tuple[str, Callable[[Any], Any], bool]] = [
    ("all_of", lambda app: AllOf(app, [optional_keys, optional_keys]), True),
    ("any_of", lambda app: AnyOf(app, [optional_keys, optional_keys], anonymous=True), True),
    ("api_key", api_key, True),
    ("authenticator", authenticator, True),
    (
        "basic",
        lambda app: BasicAuthenticator(app, "none", store=MemoryStore(), required=False),
        True,
    ),
    ("body_limit", BodyLimit, True),
    ("breaker", lambda app: Breaker(app, NEVER, store=MemoryStore()), False),
    ("client_address", ClientAddress, True),
    (
        "client_certificate",
        lambda app: ClientCertificate(app, source="client-cert", required=False),
        True,
    ),
    ("concurrency", lambda app: ConcurrencyLimiter(app, 1000, store=MemoryStore()), False),
    ("cors", lambda app: Cors(app, origins=["https://app.example.com"]), True),
    ("fallback", lambda app: Fallback(app, Problem(503)), True),
    (
        "faults",
        lambda app: Faults(app, FaultRules(abort_percent=1), enabled=True, random=lambda: 0.5),
        True,
    ),
    (
        "forward_auth",
        lambda app: ForwardAuth(app, "https://auth.example.com/", exempt=lambda environ: True),
        True,
    ),
    ("guard", Guard, False),
    (
        "introspection",
        lambda app: IntrospectionAuthenticator(
            app, "https://id.example.com/", bearer_token="token", required=False
        ),
        True,
    ),
    ("limiter", lambda app: Limiter(app, "10000 per minute", store=MemoryStore()), True),
    ("logger", lambda app: Logger(app, stream=io.StringIO()), False),
    ("metrics", Metrics, False),
    ("maintenance", lambda app: Maintenance(app, MaintenanceSwitch(MemoryStore())), True),
    ("mirror", lambda app: Mirror(app, Problem(503)), True),
    ("request_id", RequestId, True),
    ("shedder", lambda app: Shedder(app, SheddingRules(least=100)), False),
    (
        "signature",
        lambda app: SignatureAuthenticator(
            app, [Signer(subject="a", id="a", secret="x" * 32)], store=MemoryStore(), required=False
        ),
        True,
    ),
    ("splitter", lambda app: Splitter({"one": (app, 1)}), True),
    ("stale", StaleAnswers, True),
    (
        "webhook",
        lambda app: WebhookVerifier(app, secret="a secret", provider="github", required=False),
        True,
    ),
]


@pytest.fixture(autouse=True)
def _unfiltered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run without the log filters of other tests, which have RequestId wrap bodies."""
    monkeypatch.setattr("wsgigate.middleware.request_id.filters", set())


_silent = silence("wsgigate")  # the tracebacks that Guard logs


@pytest.mark.parametrize(
    ("make", "leaves_body"), [row[1:] for row in MIDDLEWARES], ids=[row[0] for row in MIDDLEWARES]
)
def test_each_middleware_keeps_the_contract(make, leaves_body):
    check_middleware(make, leaves_body=leaves_body)


def test_all_middlewares_together_keep_the_contract():
    def stack(app):
        for _, make, _ in MIDDLEWARES:
            app = make(app)
        return app

    check_middleware(stack)


def test_no_middleware_at_all_keeps_the_contract():
    check_middleware(lambda app: app, leaves_body=True)


# -- the suite itself: each of these breaks one rule, and must be found out -------------------


def joins(app):
    return lambda environ, start: [b"".join(app(environ, start))]


def prefetches(app):
    def middleware(environ, start):
        body = app(environ, start)
        chunks = list(body)
        if hasattr(body, "close"):
            body.close()
        return iter(chunks)

    return middleware


def closes_in_a_generator(app):
    def middleware(environ, start):
        body = app(environ, start)

        def chunks():
            try:
                yield from body
            finally:
                if hasattr(body, "close"):
                    body.close()

        return chunks()

    return middleware


def never_closes_generators(app):
    return lambda environ, start: (chunk for chunk in app(environ, start))


def appends_to_the_fields(app):
    def middleware(environ, start):
        def started(status, headers, exc_info=None):
            headers.append(("X-Mine", "1"))
            return start(status, headers, exc_info) if exc_info else start(status, headers)

        return app(environ, started)

    return middleware


def forgets_exc_info(app):
    return lambda environ, start: app(environ, lambda s, h, e=None: start(s, h))


def forgets_write(app):
    def middleware(environ, start):
        def started(status, headers, exc_info=None):
            start(status, headers, exc_info) if exc_info else start(status, headers)

        return app(environ, started)

    return middleware


def answers_for_failures(app):
    def middleware(environ, start):
        try:
            return app(environ, start)
        except BaseException:
            start("200 OK", [("Content-Type", "text/plain")])
            return [b"fine"]

    return middleware


def ends_cut_bodies(app):
    def middleware(environ, start):
        body = app(environ, start)

        class Cut:
            def __iter__(self):
                try:
                    yield from iter(body.__next__, None) if hasattr(body, "__next__") else body
                except Exception:
                    return

            def close(self):
                if hasattr(body, "close"):
                    body.close()

        return Cut()

    return middleware


def reads_the_body(app):
    def middleware(environ, start):
        environ["wsgi.input"].read(1)
        return app(environ, start)

    return middleware


def adds_a_hop_by_hop_field(app):
    def middleware(environ, start):
        def started(status, headers, exc_info=None):
            fields = [*headers, ("Connection", "close")]
            return start(status, fields, exc_info) if exc_info else start(status, fields)

        return app(environ, started)

    return middleware


def joins_cookies(app):
    def middleware(environ, start):
        def started(status, headers, exc_info=None):
            fields = list(dict(headers).items())
            return start(status, fields, exc_info) if exc_info else start(status, fields)

        return app(environ, started)

    return middleware


def replaces_the_environ(app):
    class Environ(dict):
        pass

    return lambda environ, start: app(Environ(environ), start)


@pytest.mark.parametrize(
    "broken",
    [
        joins,
        prefetches,
        closes_in_a_generator,
        never_closes_generators,
        appends_to_the_fields,
        forgets_exc_info,
        forgets_write,
        answers_for_failures,
        ends_cut_bodies,
        reads_the_body,
        adds_a_hop_by_hop_field,
        joins_cookies,
        replaces_the_environ,
    ],
    ids=lambda broken: broken.__name__,
)
def test_a_middleware_that_breaks_a_rule_fails_the_check(broken):
    with pytest.raises((AssertionError, TypeError)) as caught:
        check_middleware(broken)
    assert any("check_middleware" in note for note in caught.value.__notes__)


def test_wrapping_the_iterable_is_found_out_where_it_is_to_be_left():
    def wraps(app):
        return lambda environ, start: Logger(app, stream=io.StringIO())(environ, start)

    check_middleware(wraps)
    with pytest.raises(AssertionError, match="own ClosableBody was not returned"):
        check_middleware(wraps, leaves_body=True)
