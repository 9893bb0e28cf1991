"""Attacks on an authenticator whose keys an issuer publishes, over a real endpoint."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.issuer import FaultyIssuer, octets, signing_key
from tests.support.logs import silence
from tests.support.tokens import INVALID, Gate, signed
from tests.support.waiting import until
from wsgigate.auth.jwks import KeySources
from wsgigate.runtime.clocks import wall
from wsgigate.store.memory import MemoryStore

quiet = silence("wsgigate.jwks")

UNKNOWN = (503, "Tokens cannot be checked at the moment.")


class Guarded:
    """An authenticator in front of an app, that trusts an issuer."""

    def __init__(self, *issuers, cooldown=3600.0, **options):
        self.sources = KeySources(MemoryStore())
        tables = [{"issuer": each.url, "jwks_cooldown": cooldown} for each in issuers]
        chosen: dict[str, Any] = tables[0] if len(tables) == 1 else {"issuers": tables}
        self.gate = Gate(key_sources=self.sources, clock=wall, **chosen, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sources.stop()

    def ask(self, token):
        return self.gate.bearer(token)


@pytest.fixture
def issuer():
    with FaultyIssuer(algorithm="RS256") as running:
        yield running


@pytest.fixture
def guarded(issuer):
    with Guarded(issuer) as made:
        assert made.ask(issuer.token()) == (200, "")
        yield made


def test_a_public_key_of_the_issuer_is_no_secret(issuer, guarded):
    """Security J02: the keys are there for everyone to read, in each of these forms."""
    key = issuer.keys[0]
    public = key.private.public_key()
    claims = json.dumps({"iss": issuer.url, "sub": "a", "exp": time.time() + 60})
    forms = [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
        json.dumps(key.jwk()),
        json.dumps({"keys": [key.jwk()]}),
        key.jwk()["n"],
    ]
    for secret in forms:
        header = {"alg": "HS256", "kid": key.kid}
        assert guarded.ask(signed(claims, header, secret=secret)) == INVALID
        assert guarded.gate.reason == "bad token: alg is 'HS256'"
    assert guarded.ask(signed(claims, {"alg": "none", "kid": key.kid})) == INVALID


def test_a_key_id_is_looked_up_nowhere_but_in_the_set(issuer, guarded):
    """Security J04, J05: all of them together make the issuer be asked once more."""
    names = ["../../etc/passwd", "' OR 1=1 --", "https://evil.example", "", "x" * 256, "RS256"]
    for kid in (*names, *map(str, range(1000))):
        assert guarded.ask(issuer.keys[0].token({"iss": issuer.url}, kid=kid)) == INVALID
    assert issuer.fetches == 2
    assert len(set(issuer.requests)) == 2


def test_keys_that_a_token_brings_or_names_are_ignored(issuer, guarded):
    """Security J07 (CVE-2018-0114): no request is made, and nothing is verified by them."""
    evil = signing_key("RS256", 66)
    with FaultyIssuer() as other:
        claims = {"iss": issuer.url, "sub": "admin", "exp": time.time() + 60}
        for member in (
            {"jwk": evil.jwk()},
            {"jku": other.jwks_url},
            {"x5u": other.jwks_url},
            {"x5c": ["AAAA"]},
        ):
            for kid in (issuer.keys[0].kid, evil.kid, None):
                assert guarded.ask(evil.token(claims, kid=kid, **member)) == INVALID
        assert other.requests == []


def test_a_secret_or_weak_key_in_the_set_verifies_nothing(issuer):
    secret = b"0123456789abcdef0123456789abcdef"
    weak = signing_key("RS256-1024")
    oct_key = {"kty": "oct", "k": octets(secret), "kid": "s", "alg": "HS256"}
    issuer.jwks = {"keys": [oct_key, weak.jwk(), issuer.keys[0].jwk()]}
    with Guarded(issuer) as guarded:
        claims = {"iss": issuer.url, "exp": int(time.time()) + 60}
        assert guarded.ask(issuer.token()) == (200, "")
        assert guarded.ask(jwt.encode(claims, secret, "HS256", headers={"kid": "s"})) == INVALID
        assert guarded.ask(weak.token(claims)) == INVALID
        said = guarded.sources.status()[issuer.url]["error"]
        assert said == "keys[1]: RSA of 1024 bits; at least 2048 are required"


def test_a_key_is_used_only_for_what_it_is_for(issuer):
    key = signing_key("RS256")
    issuer.jwks = {"keys": [key.jwk(alg="PS256"), signing_key("ES256").jwk()]}
    with Guarded(issuer) as guarded:
        assert guarded.ask(issuer.token(key)) == INVALID
        claims = {"iss": issuer.url, "exp": int(time.time()) + 60}
        headers = {"kid": key.kid}
        assert guarded.ask(jwt.encode(claims, key.private, "PS256", headers=headers)) == (200, "")


def test_issuers_with_the_same_key_id_poison_nothing(issuer):
    """Caches that are keyed by the key id alone accept the tokens of the other issuer."""
    evil = signing_key("RS256", 66)
    with FaultyIssuer(algorithm="RS256") as other:
        kid = issuer.keys[0].kid
        other.jwks = {"keys": [evil.jwk(kid=kid)]}
        with Guarded(issuer, other) as guarded:
            claims = {"sub": "a", "exp": int(time.time()) + 60}
            for _ in range(3):
                own = evil.token({**claims, "iss": other.url}, kid=kid)
                forged = evil.token({**claims, "iss": issuer.url}, kid=kid)
                assert guarded.ask(own) == (200, "")
                assert guarded.ask(forged) == INVALID
                assert guarded.ask(issuer.token()) == (200, "")
                assert guarded.ask(issuer.token(iss=other.url)) == INVALID


def test_a_token_of_a_withdrawn_key_does_not_live_on_in_the_cache(issuer):
    """Security J29: it has an hour left, but its key was stolen."""
    stolen = issuer.keys[0]
    with Guarded(issuer, cooldown=0.05, jwks_refresh=0.05) as guarded:
        token = issuer.token(stolen)
        assert guarded.ask(token) == (200, "")
        issuer.jwks = {"keys": [signing_key("RS256", 1).jwk()]}
        until(lambda: guarded.ask(token)[0] == 401)
        assert guarded.ask(issuer.token(signing_key("RS256", 1))) == (200, "")


def test_a_key_that_was_just_published_is_accepted_at_the_first_request(issuer):
    with Guarded(issuer, cooldown=0.01) as guarded:
        assert guarded.ask(issuer.token()) == (200, "")
        issuer.rotate()
        fresh = issuer.token()
        until(lambda: guarded.ask(fresh) == (200, ""))


@pytest.mark.parametrize("mode", ["error", "close", "html", "empty", "redirect", "huge"])
def test_while_keys_cannot_be_fetched_tokens_are_not_called_invalid(issuer, mode):
    """A client that gets a 401 drops its token, or signs its user out."""
    issuer.mode = mode
    with Guarded(issuer, cooldown=0.05) as guarded:
        token = issuer.token()
        until(lambda: guarded.sources.status()[issuer.url].get("error") or guarded.ask(token))
        assert guarded.ask(token) == UNKNOWN
        assert guarded.gate.retry_after == "1"
        assert guarded.gate.challenge is None
        assert "are not available" in guarded.gate.reason
        assert guarded.gate.seen == []
        issuer.mode = "good"
        until(lambda: guarded.ask(token) == (200, ""))


def test_an_outage_rejects_no_token_of_a_known_key(issuer):
    with Guarded(issuer, cooldown=0.01, jwks_refresh=0.01) as guarded:
        token = issuer.token()
        assert guarded.ask(token) == (200, "")
        issuer.mode = "close"
        until(lambda: "error" in guarded.sources.status()[issuer.url])
        assert guarded.ask(token) == (200, "")
        assert guarded.ask(issuer.token(sub="bob")) == (200, "")
        assert guarded.ask(issuer.token(signing_key("RS256", 66))) == UNKNOWN
        assert "an unknown key" in guarded.gate.reason


def test_without_required_an_unjudged_token_does_not_pass(issuer):
    issuer.mode = "close"
    with Guarded(issuer, required=False) as guarded:
        assert guarded.ask(issuer.token())[0] == 503
        assert guarded.gate.ask() == (200, "")
