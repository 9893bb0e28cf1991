"""WebhookVerifier: which requests pass, what the app receives, and copies of a request."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pytest
from werkzeug.test import Client

from tests.support.stores import Fickle
from tests.support.webhooks import SECRETS, SENDERS, github, made, standard
from wsgigate import BodyLimit, Identity, Logger, MemoryStore, WebhookVerifier
from wsgigate.http.wsgi import IDENTITY
from wsgigate.testing import FakeClock

NOW = 1_700_000_000
BODY = b'{"event": "paid"}\r\n\x00'


class App:
    """An app that keeps the environ and the body of the last request that reached it."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}
        self.body = b""
        self.calls = 0

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.calls += 1
        self.seen = environ.copy()
        self.body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    @property
    def caller(self) -> Any:
        return self.seen.get(IDENTITY)


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


def verifier(app: Any, clock: FakeClock, provider: str = "standard", **options: Any) -> Client:
    given = {"secret": SECRETS.get(provider), "provider": provider, "clock": clock, **options}
    return Client(WebhookVerifier(app, **given))


@pytest.mark.parametrize("provider", SENDERS)
def test_a_signed_request_passes_unchanged(provider: str, app: App, clock: FakeClock) -> None:
    client = verifier(app, clock, provider, subject="billing")
    fields = SENDERS[provider](BODY, NOW)
    assert client.post("/", data=BODY, headers=fields).status_code == 200
    assert app.body == BODY
    assert app.seen["CONTENT_LENGTH"] == str(len(BODY))
    assert (app.caller.subject, app.caller.scheme, app.caller.issuer) == (
        "billing",
        "webhook",
        provider,
    )
    claims = {"sub": "billing", "provider": provider}
    claims |= {"id": "msg_1"} if provider in ("standard", "svix") else {}
    assert app.caller.claims == (claims if provider == "github" else {**claims, "timestamp": NOW})

    app.calls = 0
    forged = client.post("/", data=BODY + b"x", headers=fields)
    assert (forged.status_code, forged.json["detail"]) == (401, "Invalid signature!")
    missing = client.post("/", data=BODY)
    assert (missing.status_code, missing.json["detail"]) == (401, "Signature required!")
    assert missing.headers["WWW-Authenticate"] == 'Webhook realm="api"'
    assert app.calls == 0


@pytest.mark.parametrize("provider", [name for name in SENDERS if name != "github"])
def test_the_time_has_a_tolerance_both_ways(provider: str, app: App, clock: FakeClock) -> None:
    client = verifier(app, clock, provider)
    for difference, status in ((300, 200), (-300, 200), (301, 401), (-301, 401)):
        fields = SENDERS[provider](BODY, NOW + difference)
        assert client.post("/", data=BODY, headers=fields).status_code == status
    short = verifier(app, clock, provider, tolerance=5.0)
    late = SENDERS[provider](BODY, NOW - 6)
    assert short.post("/", data=BODY, headers=late).status_code == 401


def test_an_empty_body_is_signed_as_well(app: App, clock: FakeClock) -> None:
    client = verifier(app, clock)
    for method in ("GET", "POST", "HEAD"):
        assert client.open("/", method=method, headers=standard(b"", NOW)).status_code == 200
    assert client.get("/", headers=standard(b"x", NOW)).status_code == 401


def test_the_body_has_a_bound(app: App, clock: FakeClock) -> None:
    client = verifier(app, clock, max_body=10)
    assert client.post("/", data=b"x" * 10, headers=standard(b"x" * 10, NOW)).status_code == 200
    for body in (b"x" * 11, b"x" * 10_000):
        assert client.post("/", data=body, headers=standard(body, NOW)).status_code == 413
    assert app.calls == 1


class Unread(io.BytesIO):
    def read(self, *_: Any) -> bytes:
        raise AssertionError("the body was read")


def test_no_body_is_read_for_a_request_that_is_rejected_anyway(app: App, clock: FakeClock) -> None:
    client = verifier(app, clock)
    for fields in ({}, standard(BODY, NOW - 1000), {**standard(BODY, NOW), "webhook-id": "a.b"}):
        answer = client.post("/", input_stream=Unread(BODY), content_length=20, headers=fields)
        assert answer.status_code == 401


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"CONTENT_LENGTH": "200"}, 400),  # truncated
        ({"CONTENT_LENGTH": "x"}, 400),
        ({"HTTP_TRANSFER_ENCODING": "chunked"}, 400),  # and a length
        ({"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"}, 411),
        (
            {
                "CONTENT_LENGTH": "",
                "HTTP_TRANSFER_ENCODING": "chunked",
                "wsgi.input_terminated": True,
            },
            200,
        ),
    ],
)
def test_a_body_is_read_to_its_end(
    changes: dict[str, Any], status: int, app: App, clock: FakeClock
) -> None:
    client = verifier(app, clock)
    answer = client.post("/", data=BODY, headers=standard(BODY, NOW), environ_overrides=changes)
    assert answer.status_code == status
    if status == 200:
        assert app.body == BODY
        assert "HTTP_TRANSFER_ENCODING" not in app.seen
        assert app.seen["CONTENT_LENGTH"] == str(len(BODY))


def test_a_body_limit_around_it_holds(app: App, clock: FakeClock) -> None:
    made = WebhookVerifier(app, secret=SECRETS["standard"], clock=clock)
    chunked = {
        "CONTENT_LENGTH": "",
        "HTTP_TRANSFER_ENCODING": "chunked",
        "wsgi.input_terminated": True,
    }
    fields = standard(BODY, NOW)
    client = Client(BodyLimit(made, 5))
    answer = client.post("/", data=BODY, headers=fields, environ_overrides=chunked)
    assert answer.status_code == 413


def test_a_copy_is_rejected_once_the_request_was_received(app: App, clock: FakeClock) -> None:
    store = MemoryStore()
    workers = [verifier(app, clock, once=True, store=store) for _ in range(2)]
    first = standard(BODY, NOW)
    assert workers[0].post("/", data=BODY, headers=first).status_code == 200
    for client in workers:
        answer = client.post("/", data=BODY, headers=first)
        assert (answer.status_code, answer.json["detail"]) == (
            409,
            "This request was received before.",
        )
        # a signature that is added or left out makes no other request of it
        more = {**first, "webhook-signature": f"v1,AAAA {first['webhook-signature']}"}
        assert client.post("/", data=BODY, headers=more).status_code == 409
    # the sender's next attempt to deliver the same message, and another message
    assert workers[1].post("/", data=BODY, headers=standard(BODY, NOW + 5)).status_code == 200
    other = standard(BODY, NOW, name="msg_2")
    assert workers[1].post("/", data=BODY, headers=other).status_code == 200
    # the same event for another endpoint, which has another secret
    second = "YW5vdGhlciBzZWNyZXQ="
    elsewhere = verifier(app, clock, once=True, store=store, secret=second)
    event = standard(BODY, NOW, second)
    assert elsewhere.post("/", data=BODY, headers=event).status_code == 200
    # a forged request spends nothing
    forged = {**standard(BODY, NOW, name="msg_3"), "webhook-signature": "v1,AAAA"}
    assert workers[0].post("/", data=BODY, headers=forged).status_code == 401
    third = standard(BODY, NOW, name="msg_3")
    assert workers[0].post("/", data=BODY, headers=third).status_code == 200


def test_a_copy_passes_by_default(app: App, clock: FakeClock) -> None:
    client = verifier(app, clock)
    for _ in range(2):
        assert client.post("/", data=BODY, headers=standard(BODY, NOW)).status_code == 200


@pytest.mark.parametrize(
    ("mode", "status", "effect"),
    [("refuse", 503, "were rejected"), ("allow", 200, "passed unmarked")],
)
def test_once_needs_the_store(
    mode: str,
    status: int,
    effect: str,
    app: App,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Fickle(MemoryStore(clock=clock))
    made = WebhookVerifier(
        app,
        secret=SECRETS["standard"],
        clock=clock,
        once=True,
        store=store,
        on_store_error=mode,
    )
    client = Client(made)
    store.broken = True
    for _ in range(2):
        answer = client.post("/", data=BODY, headers=standard(BODY, NOW))
        assert answer.status_code == status
    if status == 503:
        assert answer.headers["Retry-After"] == "5"
    assert made.store_errors == 2
    store.broken = False
    assert client.post("/", data=BODY, headers=standard(BODY, NOW)).status_code == 200
    assert client.post("/", data=BODY, headers=standard(BODY, NOW)).status_code == 409
    assert [each.getMessage() for each in caplog.records if each.name == "wsgigate.webhooks"] == [
        f"webhooks cannot be marked as received, 1 requests {effect} since the last such "
        "message: the disk is full",
        "webhooks can be marked as received again",
    ]


def test_the_reason_is_for_the_log_and_no_secret_is_in_it(app: App, clock: FakeClock) -> None:
    log = io.StringIO()
    options = {"secret": SECRETS["standard"], "clock": clock}
    logged = Logger(WebhookVerifier(app, **options), stream=log)
    client = Client(logged)
    client.post("/", data=BODY, headers=standard(BODY, NOW - 1000), buffered=True)
    client.post("/", data=b"x", headers=standard(BODY, NOW), buffered=True)
    client.post("/", data=b"x", buffered=True)
    logged.close()
    text = log.getvalue()
    for reason in ("signed 1000 s ago", "no signature is that of a secret", "no signature"):
        assert reason in text
    assert SECRETS["standard"] not in text


def test_a_caller_of_no_authenticator_is_removed(app: App, clock: FakeClock) -> None:
    forged = {IDENTITY: Identity("root", "webhook")}
    assert verifier(app, clock).post("/", environ_overrides=forged).status_code == 401
    optional = verifier(app, clock, required=False)
    assert optional.post("/", environ_overrides={IDENTITY: "root"}).status_code == 200
    assert not app.caller
    answer = optional.post("/", data=b"x", headers=standard(BODY, NOW))
    assert answer.status_code == 401


def test_exempt_requests_pass(app: App, clock: FakeClock) -> None:
    client = verifier(app, clock, exempt={"paths": ["/health"]})
    assert client.get("/health").status_code == 200
    assert client.get("/").status_code == 401


def test_another_sender_is_described_by_options(app: App, clock: FakeClock) -> None:
    client = verifier(
        app,
        clock,
        "hmac",
        secret=SECRETS["github"],
        header="X-Sig",
        prefix="v1=",
        timestamp_header="X-Time",
        content="{timestamp}:{body}",
        once=True,
        store=MemoryStore(),
    )
    signature = made(SECRETS["github"].encode(), f"{NOW}:".encode() + BODY).hex()
    fields = {"X-Sig": f"v1={signature}", "X-Time": str(NOW)}
    assert client.post("/", data=BODY, headers=fields).status_code == 200
    assert client.post("/", data=BODY, headers=fields).status_code == 409
    assert app.caller.subject == "hmac"


def test_several_secrets_are_valid(app: App, clock: FakeClock) -> None:
    client = verifier(app, clock, "github", secret=["an old secret", SECRETS["github"]])
    for secret in ("an old secret", SECRETS["github"]):
        fields = github(BODY, NOW, secret)
        assert client.post("/", data=BODY, headers=fields).status_code == 200
    fields = github(BODY, NOW, "another secret")
    assert client.post("/", data=BODY, headers=fields).status_code == 401


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"secret": None}, "secret: is required"),
        ({"secret": ""}, "secret: is empty"),
        ({"secret": []}, "secret: expected a text"),
        ({"secret": ["", "x"]}, "secret: is empty"),
        ({"secret": "whsec_!"}, "secret: the secret is not in base64"),
        ({"provider": "gitlab"}, "provider: one of standard"),
        ({"tolerance": 0}, "tolerance: above 0 s"),
        ({"tolerance": 86_401.0}, "tolerance: above 0 s, at most a day"),
        ({"max_body": "much"}, "max_body: "),
        ({"subject": ""}, "subject: "),
        ({"header": "X-Sig"}, 'header: applies to provider = "hmac" only'),
        ({"algorithm": "sha512"}, "algorithm: applies to"),
        ({"provider": "hmac"}, "header: the name of a field"),
        ({"provider": "hmac", "header": "a b"}, "header: the name of a field"),
        ({"provider": "hmac", "header": "X", "timestamp_header": ""}, "timestamp_header: "),
        ({"provider": "hmac", "header": "X", "encoding": "octal"}, "encoding: one of hex"),
        ({"provider": "hmac", "header": "X", "algorithm": "md5"}, "algorithm: one of sha256"),
        ({"provider": "hmac", "header": "X", "content": "{timestamp}"}, "content: exactly one"),
        ({"provider": "hmac", "header": "X", "once": True}, "once: requires a signed time"),
        ({"provider": "github", "secret": "a secret", "once": True}, "once: requires"),
        ({"on_store_error": "maybe"}, "on_store_error is"),
        ({"realm": '"'}, "realm: "),
    ],
)
def test_an_invalid_argument_is_named(options: dict[str, Any], message: str, app: App) -> None:
    with pytest.raises(ValueError, match=message):
        WebhookVerifier(app, **{"secret": SECRETS["standard"], **options})
