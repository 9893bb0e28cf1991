"""Opaque tokens that are bound to their client (RFC 9449 section 6.2, RFC 8705 section 3.2)."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from werkzeug.test import Client

from tests.support.dpop import Prover
from tests.support.introspection import ACTIVE, Gate, gate
from tests.support.logs import silence
from tests.support.stores import Fickle
from tests.support.tokens import NOW
from wsgigate import AnyOf, ApiKeyAuthenticator, ApiKeys, IntrospectionAuthenticator
from wsgigate.auth.identity import IDENTITY
from wsgigate.http.wsgi import CLIENT_CERTIFICATE
from wsgigate.store.memory import MemoryStore

_silent = silence("wsgigate.introspection")

ANN, EVE = Prover(), Prover()
THUMBPRINT = "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"
SECRET = "a secret of nonces, thirty-two bytes or so"
TOKENS = {
    "plain": ACTIVE,
    "bound": {**ACTIVE, "token_type": "DPoP", "cnf": {"jkt": ANN.key}},
    "certified": {**ACTIVE, "cnf": {"x5t#S256": THUMBPRINT}},
    "both": {**ACTIVE, "cnf": {"jkt": ANN.key, "x5t#S256": THUMBPRINT}},
}


def binding(**options: Any) -> Any:
    options = {"dpop": "optional", "tokens": TOKENS, **options}
    return gate(**{"store": MemoryStore(clock=lambda: NOW), **options})


def proof(token: str = "bound", **changes: Any) -> str:
    return ANN.proof(token, url="http://localhost/", **changes)


def proven(it: Gate, value: str | None, token: str = "bound", **environ: Any) -> tuple[int, str]:
    """Return the status of a request with a proof, and why it was rejected."""
    if value is not None:
        environ["HTTP_DPOP"] = value
    response = it.ask(None, HTTP_AUTHORIZATION=f"DPoP {token}", **environ)
    return response.status_code, it.reason


@pytest.mark.parametrize("mode", ["optional", "required"])
def test_a_bound_token_passes_with_its_proof_and_never_as_a_bearer_token(mode: str) -> None:
    with binding(dpop=mode) as (it, server):
        for _ in range(2):  # asked about, and remembered
            assert it.ask("bound").status_code == 401
            assert it.reason == "bad token: bound to a key, and sent as a bearer token"
            assert it.ask("bound", HTTP_DPOP=proof()).status_code == 401
        assert not it.seen
        assert proven(it, proof())[0] == 200
        assert it.seen[0][IDENTITY].subject == "ann"
        assert it.seen[0][IDENTITY].scheme == "introspection"
        assert "HTTP_DPOP" not in it.seen[0]
        assert proven(it, proof()) == (401, "bad token: the proof was used before (jti)")
        assert server.asked == ["bound"]


def test_a_bearer_token_passes_where_proofs_are_optional_only() -> None:
    with binding() as (it, _):
        assert it.ask("plain", HTTP_DPOP="x").status_code == 200
        assert "HTTP_DPOP" not in it.seen[0]
        assert proven(it, ANN.proof("plain"), "plain")[0] == 401
        assert it.reason == "bad token: sent as DPoP, and not bound to a key"
    with binding(dpop="required") as (it, _):
        assert it.ask("plain").status_code == 401
        assert it.reason == "bad token: not bound by cnf.jkt"


@pytest.mark.parametrize(
    "value",
    [
        None,
        "x",
        proof("plain"),
        proof(htm="POST"),
        proof(iat=NOW - 100),
        EVE.proof("bound", url="http://localhost/"),
        ANN.proof("bound", url="https://evil.example/"),
    ],
    ids=range(7),
)
def test_another_proof_is_rejected_and_spends_nothing(value: str | None) -> None:
    with binding() as (it, _):
        assert proven(it, value)[0] == 401
        assert not it.seen
        assert proven(it, proof())[0] == 200


@pytest.mark.parametrize(
    "cnf", [{}, [], "x", {"jkt": 1}, {"jkt": None}, {"kid": "x"}, {"x5t#S256": THUMBPRINT}]
)
def test_a_token_that_is_bound_in_a_way_that_is_not_checked(cnf: Any) -> None:
    with binding(tokens={"bound": {**ACTIVE, "cnf": cnf}}) as (it, _):
        assert it.ask("bound").status_code == 401
        assert proven(it, proof())[0] == 401
        assert not it.seen


def test_without_the_options_a_bound_token_is_a_bearer_token() -> None:
    with gate(tokens=TOKENS) as (it, server):
        for token in TOKENS:
            assert it.ask(token, HTTP_DPOP="x").status_code == 200
        assert it.seen[-1]["HTTP_DPOP"] == "x"
        assert proven(it, proof()) == (401, "no token")
        assert len(server.requests) == len(TOKENS)


@pytest.mark.parametrize("mode", ["optional", "required"])
def test_a_token_with_its_certificate(mode: str) -> None:
    with binding(dpop="off", certificate_bound=mode) as (it, _):
        for found, status in ((THUMBPRINT, 200), ("x", 401), (None, 401)):
            certificate = {CLIENT_CERTIFICATE: {"thumbprint": found}}
            assert it.ask("certified", **certificate).status_code == status
        assert it.ask("certified").status_code == 401
        assert it.ask("bound").status_code == 401
        assert it.ask("plain").status_code == (200 if mode == "optional" else 401)


def test_a_token_that_is_bound_by_both() -> None:
    certificate = {CLIENT_CERTIFICATE: {"thumbprint": THUMBPRINT}}
    with binding(certificate_bound="optional") as (it, _):
        assert proven(it, proof("both"), "both")[0] == 401
        assert it.ask("both", **certificate).status_code == 401
        assert proven(it, proof("both"), "both", **certificate)[0] == 200


def test_challenges_name_the_accepted_schemes() -> None:
    algorithms = {"dpop_algorithms": ["ES256"], "scopes": ["admin"]}

    def challenges(it: Gate, token: str | None = None, **environ: Any) -> list[str]:
        return it.ask(token, **environ).headers.getlist("WWW-Authenticate")

    dpop = 'DPoP realm="api", algs="ES256"'
    with binding(**algorithms) as (it, _):
        assert challenges(it) == ['Bearer realm="api"', dpop]
        assert challenges(it, "bound") == ['Bearer realm="api", error="invalid_token"', dpop]
        sent = {"HTTP_AUTHORIZATION": "DPoP bound", "HTTP_DPOP": proof()}
        [_, missing] = challenges(it, **sent)
        assert 'DPoP realm="api", error="insufficient_scope", scope="admin"' in missing
        assert challenges(it, **sent)[1].startswith('DPoP realm="api", error="invalid_dpop_proof"')
    with binding(dpop="required", **algorithms) as (it, _):
        assert challenges(it) == [dpop]


def test_a_nonce_is_required() -> None:
    with binding(dpop_nonce_secret=SECRET) as (it, _):
        first = it.ask(None, HTTP_AUTHORIZATION="DPoP bound", HTTP_DPOP=proof())
        assert first.status_code == 401
        assert 'error="use_dpop_nonce"' in first.headers.getlist("WWW-Authenticate")[1]
        nonce = first.headers["DPoP-Nonce"]
        assert proven(it, proof(nonce=nonce))[0] == 200
        it.clock.advance(120)  # the next period
        value = proof(nonce=nonce, jti="proof-2", iat=int(NOW) + 120)
        later = it.ask(None, HTTP_AUTHORIZATION="DPoP bound", HTTP_DPOP=value)
        assert later.status_code == 200
        assert later.headers["DPoP-Nonce"] != nonce


@pytest.mark.parametrize(("on_error", "status"), [("refuse", 503), ("allow", 200)])
def test_a_store_that_fails_concerns_proofs_only(on_error: str, status: int) -> None:
    store = Fickle(MemoryStore(clock=lambda: NOW))
    with binding(store=store, on_store_error=on_error) as (it, _):
        store.broken = True
        assert proven(it, proof())[0] == status
        assert it.ask("plain").status_code == 200
        assert it.app.store_errors == 1
        store.broken = False
        assert proven(it, proof(jti="proof-2"))[0] == 200


def test_two_tokens_are_rejected() -> None:
    with binding() as (it, server):
        for value in ("DPoP bound,DPoP bound", "DPoP bound, Bearer plain", "Basic x,DPoP bound"):
            response = it.ask(None, HTTP_AUTHORIZATION=value, HTTP_DPOP=proof())
            assert response.status_code == 401
        assert not server.requests


def test_a_bound_token_is_no_bearer_token_as_one_of_several_credentials() -> None:
    keys = ApiKeys(MemoryStore())
    key, _ = keys.create("acme")
    with binding() as (it, server):
        bound = partial(
            IntrospectionAuthenticator,
            endpoint=server.url,
            client_id="gate",
            client_secret="s3cret",
            dpop="optional",
            store=MemoryStore(clock=lambda: NOW),
            clock=it.clock,
        )
        client = Client(AnyOf(it.inner, [bound, partial(ApiKeyAuthenticator, keys=keys)]))

        def status(**fields: str) -> int:
            return client.get("/", headers=fields).status_code

        assert status(Authorization="Bearer bound") == 401
        assert status(Authorization="DPoP bound", DPoP=proof()) == 200
        assert status(Authorization="DPoP bound", DPoP=proof()) == 401
        assert client.get("/", headers={"X-API-Key": key, "DPoP": proof()}).status_code == 200
        assert "HTTP_DPOP" not in it.seen[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dpop": "yes"}, 'dpop is "off", "optional" or "required", not'),
        ({"certificate_bound": True}, 'certificate_bound is "off"'),
        ({"dpop": "off", "dpop_nonce_secret": SECRET}, "dpop_nonce_secret: requires dpop"),
        ({"dpop_algorithms": ["HS256"]}, "dpop_algorithms: 'HS256'"),
        ({"dpop_max_age": 0}, "dpop_max_age: 1 to 3600 seconds, not 0"),
        ({"on_store_error": "ignore"}, 'on_store_error is "allow" or "refuse"'),
        ({"store": 7}, "store: "),
    ],
)
def test_an_invalid_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), binding(**options):
        pass
