"""The authenticator: tokens, challenges, claims, scopes and its cache."""

from __future__ import annotations

import io
import json
import threading
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import flask
import pytest
from django.http import JsonResponse
from werkzeug.test import Client

from tests.support.objects import part
from tests.support.tokens import GOOD, INVALID, MISSING, NOW, SECRET, Gate, claims, signed
from wsgigate.auth.identity import Identity
from wsgigate.auth.jwt import mint
from wsgigate.auth.token_cache import TokenCache
from wsgigate.http.problem import Problem
from wsgigate.http.wsgi import CLAIMS, IDENTITY
from wsgigate.middleware.authenticator import Authenticator
from wsgigate.middleware.logger import Logger


def test_a_valid_token_sets_the_claims():
    gate = Gate()
    assert gate.bearer(signed(claims(role="admin"))) == (200, "")
    assert gate.claims == {**GOOD, "role": "admin"}
    assert gate.reason is None


def test_a_request_without_a_token_gets_a_challenge():
    """RFC 6750 section 3.1: no error code where no token was sent."""
    gate = Gate()
    assert gate.ask() == MISSING
    assert gate.challenge == 'Bearer realm="api"'
    assert json.loads(gate.body)["message"] == "Access token required!"
    assert gate.seen == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_every_method_is_treated_alike(method):
    """Security J31: OPTIONS is no way around."""
    gate = Gate()
    assert gate.ask(REQUEST_METHOD=method)[0] == 401
    assert gate.bearer("x", REQUEST_METHOD=method)[0] == 401
    assert gate.bearer(signed(GOOD), REQUEST_METHOD=method)[0] == 200


def test_claims_from_outside_are_removed():
    gate = Gate(required=False)
    forged = {CLAIMS: {"sub": "admin"}, IDENTITY: Identity(subject="admin", scheme="bearer")}
    gate.ask(**forged)
    assert not {CLAIMS, IDENTITY} & gate.seen[-1].keys()
    environ = dict(forged)
    setup_testing_defaults(environ)
    Gate().stack(environ, lambda *args: None)
    assert not {CLAIMS, IDENTITY} & environ.keys()


def test_without_required_no_token_passes_but_a_bad_one_does_not():
    gate = Gate(required=False)
    assert gate.ask() == (200, "")
    assert gate.ask("Basic dXNlcjpwYXNz") == (200, "")
    assert gate.bearer("bad") == INVALID
    assert gate.ask("Bearer") == INVALID
    assert gate.ask("Basic x,Bearer y") == INVALID
    assert gate.bearer(signed(GOOD)) == (200, "")
    assert gate.claims == GOOD


@pytest.mark.parametrize("value", ["secret/with+base64==", "Token=secret", "Bearer:secret"])
def test_a_credential_in_place_of_a_scheme_is_not_logged(value):
    gate = Gate()
    assert gate.ask(value) == INVALID
    assert gate.reason == (
        "bad token: the Authorization field is malformed or has more than one value"
    )


def test_d05_two_authorization_fields_are_refused():
    gate, good = Gate(), signed(GOOD)
    for evil in ("Bearer evil", good, "Basic x"):
        assert gate.ask(f"Bearer {good},{evil}") == INVALID
        assert gate.ask(f"Bearer {good}, {evil}") == INVALID
        assert gate.reason == "bad token: more than one Authorization field"
        assert gate.ask(f"{evil},Bearer {good}") == INVALID
    assert gate.seen == []


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("Bearer {}", (200, "")),
        ("bearer {}", (200, "")),
        ("BEARER {}", (200, "")),
        ("Bearer  {}", INVALID),
        ("Bearer {} x", INVALID),
        ("Bearer {} ", INVALID),
        ("Bearer", INVALID),
        ("Bearer ", INVALID),
        ("Bearer\t{}", INVALID),
        ("\tBearer {}", INVALID),
        (" Bearer {}", INVALID),
        ("Bearer{}", INVALID),
        ("{}", MISSING),
        ("Basic {}", MISSING),
        ("Basic", MISSING),
        ("", MISSING),
    ],
)
def test_d06_the_field_has_one_form(template, expected):
    """RFC 6750 section 2.1; the scheme alone is case-insensitive (RFC 9110 section 11.1)."""
    gate = Gate()
    gate.bearer(signed(GOOD))  # a remembered token gets no laxer treatment
    assert gate.ask(template.format(signed(GOOD))) == expected


def test_d07_a_token_elsewhere_is_no_token():
    token = signed(GOOD)
    for environ in (
        {"QUERY_STRING": f"access_token={token}"},
        {"HTTP_COOKIE": f"access_token={token}; Authorization=Bearer {token}"},
        {"HTTP_PROXY_AUTHORIZATION": f"Bearer {token}"},
        {"HTTP_X_AUTHORIZATION": f"Bearer {token}"},
    ):
        assert Gate().ask(**environ) == MISSING


def test_j29_a_cached_token_expires_on_time():
    gate = Gate()
    token = signed(claims(exp=NOW + 60))
    for offset, status in ((0, 200), (89.9, 200), (90, 401), (3600, 401)):
        gate.clock.now = NOW + offset
        assert gate.bearer(token)[0] == status
    assert gate.reason == "bad token: expired since it was verified"


def test_j29_tokens_that_share_all_but_a_little_are_not_mistaken():
    gate = Gate()
    good = signed(claims(x="x" * 3000))
    assert gate.bearer(good)[0] == 200
    middle = len(good) // 2
    for place in (5, middle, len(good) - 2):
        other = "B" if good[place] != "B" else "C"
        assert gate.bearer(good[:place] + other + good[place + 1 :]) == INVALID
    assert gate.bearer(good[:-1]) == INVALID


def test_j29_rejected_tokens_are_not_cached():
    gate = Gate()
    for token in ("x", signed(claims(exp=1)), signed(GOOD, secret="e" * 32)):
        gate.bearer(token)
    assert len(part(TokenCache, gate.stack)) == 0


def test_j29_the_cache_is_bounded_and_keeps_the_latest_tokens():
    gate = Gate(cache_size=10)
    tokens = [signed(claims(sub=f"user-{number}")) for number in range(50)]
    for token in tokens:
        assert gate.bearer(token)[0] == 200
        assert len(part(TokenCache, gate.stack)) <= 10
    assert len(part(TokenCache, gate.stack)) >= 5


def test_a_token_in_use_outlives_those_that_are_not():
    recent = TokenCache(10)
    recent.put(b"used", "verified")
    for number in range(100):
        recent.put(str(number).encode(), "other")
        assert recent.get(b"used") == "verified"
        assert len(recent) <= 10
    assert recent.get(b"5") is None


@pytest.mark.parametrize("size", [0, 1])
def test_a_cache_size_of_zero_disables_the_cache(size):
    gate = Gate(cache_size=size)
    assert gate.bearer(signed(GOOD))[0] == gate.bearer(signed(GOOD))[0] == 200
    assert len(part(TokenCache, gate.stack)) == 0


@pytest.mark.parametrize("extra", [{"role": "a"}, {"roles": ["a"], "org": {"id": 1}}])
def test_each_request_gets_its_own_copy_of_the_claims(extra):
    gate = Gate()
    token = signed(claims(**extra))
    for _ in range(3):
        gate.bearer(token)
        assert gate.claims == {**GOOD, **extra}
        gate.claims["sub"] = "admin"
        gate.claims.get("roles", []).append("admin")
        gate.claims.get("org", {})["id"] = 2


def test_threads_share_the_cache():
    gate = Gate(cache_size=4)
    tokens = [signed(claims(sub=f"user-{number}")) for number in range(8)]
    wrong = []

    def run():
        for _ in range(50):
            for number, token in enumerate(tokens):
                environ = {"HTTP_AUTHORIZATION": f"Bearer {token}", "REQUEST_METHOD": "GET"}
                gate.stack(environ, lambda *args: None)
                if environ.get(CLAIMS, {}).get("sub") != f"user-{number}":  # type: ignore[call-overload]
                    wrong.append(environ)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("status", [401, 403])
def test_j30_every_flaw_gets_the_same_answer(status):
    gate = Gate(invalid_token_status=status, realm="shop")
    bodies = set()
    tokens = [
        "x",
        signed(GOOD, secret="e" * 32),
        signed(claims(exp=1)),
        signed(claims(sub=5)),
        signed(GOOD, '{"alg":"none"}'),
    ]
    reasons = set()
    for token in tokens:
        assert gate.bearer(token) == (status, "Invalid or expired token!")
        assert gate.challenge == 'Bearer realm="shop", error="invalid_token"'
        bodies.add(gate.body)
        reasons.add(gate.reason)
        assert SECRET not in gate.reason  # type: ignore[operator]
    assert len(bodies) == 1
    assert SECRET.encode() not in bodies.pop()
    assert len(reasons) == len(tokens), "the operator is told which it was"
    assert gate.seen == []


@pytest.mark.parametrize(
    ("extra", "status"),
    [
        ({"scope": "orders:read orders:write"}, 200),
        ({"scope": "a orders:write orders:read b"}, 200),
        ({"scp": ["orders:read", "orders:write"]}, 200),
        ({"scp": "orders:read orders:write"}, 200),
        ({"scopes": ["orders:read", "orders:write"]}, 200),
        ({"scope": "orders:read", "scp": ["orders:write"]}, 200),
        ({"scope": "orders:read"}, 403),
        ({"scope": "orders:readorders:write"}, 403),
        ({"scope": "ORDERS:READ ORDERS:WRITE"}, 403),
        ({"scope": {"orders:read": 1, "orders:write": 1}}, 403),
        ({"scopes": [["orders:read", "orders:write"], None, 5]}, 403),
        ({}, 403),
    ],
)
def test_all_scopes_are_needed(extra, status):
    """RFC 6750 section 3.1."""
    gate = Gate(scopes=["orders:write", "orders:read"])
    for _ in range(2):  # verified, then remembered
        answer = gate.bearer(signed(claims(**extra)))
        assert answer == (status, "" if status == 200 else "Insufficient scope.")
    if status == 403:
        assert gate.challenge == (
            'Bearer realm="api", error="insufficient_scope", scope="orders:read orders:write"'
        )
        assert "orders:write" in gate.reason  # type: ignore[operator]
        assert gate.seen == []


def test_the_access_log_has_the_subject_of_a_token_without_the_scope():
    stream = io.StringIO()
    logger = Logger(Gate(scopes=["orders:write"]).stack, stream=stream, format="json")
    fields = {"Authorization": f"Bearer {signed(claims())}"}
    assert Client(logger).get("/", headers=fields).status_code == 403
    logger.flush(30)
    record = json.loads(stream.getvalue())
    assert (record["status"], record["subject"]) == (403, "user-1")


def test_j33_an_error_during_verification_never_passes():
    def broken():
        raise OSError("no clock")

    gate = Gate(clock=broken, required=False)
    with pytest.raises(OSError, match="no clock"):
        gate.bearer(signed(GOOD))
    assert gate.seen == []


def test_the_refusals_can_be_replaced():
    problems = []

    def refuse(problem):
        problems.append(problem.status)
        return Problem(418)

    gate = Gate(refuse=refuse)
    assert gate.ask()[0] == gate.bearer("x")[0] == 418
    assert sorted(problems) == [401, 401, 403], "they are made once"


def test_the_stack_is_valid_wsgi():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    stack = validator(Authenticator(validator(app), algorithms=["HS256"], secret=SECRET))
    for token, status in ((mint(SECRET, "HS256", "a"), 200), ("x", 401)):
        headers = {"Authorization": f"Bearer {token}"}
        assert Client(stack).get("/", headers=headers, buffered=True).status_code == status
    assert Client(stack).head("/", buffered=True).data == b""


def check_app(client):
    """The claims arrive, and without a token nothing does."""
    token = mint(SECRET, "HS256", "user-1", role="admin")
    answer = client.get("/", headers={"Authorization": f"Bearer {token}"})
    assert answer.json == {"sub": "user-1", "role": "admin"}
    answer = client.get("/")
    assert answer.status_code == 401
    assert answer.mimetype == "application/problem+json"
    assert answer.json["success"] is False
    assert answer.json["message"] == "Access token required!"
    answer = client.get("/", headers={"Authorization": f"Bearer {token}x"})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="api", error="invalid_token"'


def test_a_flask_app_behind_it_knows_its_caller():
    app = flask.Flask(__name__)

    @app.get("/")
    def index():
        found = flask.request.environ[CLAIMS]
        return {"sub": found["sub"], "role": found["role"]}

    app.wsgi_app = Authenticator(app.wsgi_app, algorithms=["HS256"], secret=SECRET)
    check_app(app.test_client())


def test_a_django_app_behind_it_knows_its_caller(django_app):
    def index(request):
        found = request.environ[CLAIMS]
        return JsonResponse({"sub": found["sub"], "role": found["role"]})

    app = django_app({"": index})
    check_app(Client(Authenticator(app, algorithms=["HS256"], secret=SECRET)))
