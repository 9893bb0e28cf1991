"""Tokens that are bound to their client: by a key (DPoP, RFC 9449) or a certificate (RFC 8705)."""

from __future__ import annotations

import base64
import hashlib
import logging
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

from tests.support.certificates import Authority
from tests.support.dpop import Prover
from tests.support.logs import silence
from tests.support.stores import Fickle
from tests.support.tokens import GOOD, NOW, Gate, signed
from tests.support.tokens import SECRET as TOKEN_SECRET
from wsgigate.auth.identity import Identity
from wsgigate.coordination.denylist import DenyList
from wsgigate.http.wsgi import CLIENT_CERTIFICATE, IDENTITY
from wsgigate.middleware.all_of import AllOf
from wsgigate.middleware.authenticator import Authenticator
from wsgigate.middleware.client_address import ClientAddress
from wsgigate.middleware.client_certificate import ClientCertificate
from wsgigate.store import MisconfiguredStore, StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore

_silent = silence("wsgigate.authenticator")

ANN, EVE = Prover(), Prover()
BOUND = signed({**GOOD, "cnf": {"jkt": ANN.key}})
PLAIN = signed(GOOD)
INVALID = (401, "Invalid or expired token!")
NO_PROOF = (401, "Invalid proof (DPoP)!")
SECRET = "a secret of nonces, thirty-two bytes or so"


class Guard(Gate):
    """An authenticator that checks proofs, at the moment of the test."""

    def __init__(self, dpop: str = "optional", **options: Any) -> None:
        self.store = options.setdefault("store", MemoryStore(clock=lambda: NOW))
        super().__init__(dpop=dpop, **options)

    def ask(self, authorization: str | None = None, **environ: Any) -> tuple[int, str]:
        self.environ = environ
        return super().ask(authorization, **environ)

    def bound(
        self, proof: str | None, token: str = BOUND, scheme: str = "DPoP", **environ: Any
    ) -> tuple[int, str]:
        if proof is not None:
            environ["HTTP_DPOP"] = proof
        return self.ask(f"{scheme} {token}", **environ)


def proof(**changes: Any) -> str:
    return ANN.proof(BOUND, **changes)


def challenges(guard: Guard, authorization: str | None = None, **environ: Any) -> list[str]:
    """Return all challenges of a response."""
    client = Client(guard.stack)
    headers = {} if authorization is None else {"Authorization": authorization}
    response = client.get("/", headers=headers, environ_overrides=environ)
    return response.headers.getlist("WWW-Authenticate")


@pytest.mark.parametrize("mode", ["optional", "required"])
@pytest.mark.parametrize("scheme", ["DPoP", "dpop", "DPOP"])
def test_a_bound_token_with_its_proof(mode: str, scheme: str) -> None:
    guard = Guard(mode)
    assert guard.bound(proof(), scheme=scheme) == (200, "")
    assert guard.identity.scheme == "dpop"
    assert guard.identity.subject == "user-1"


def test_a_proof_is_accepted_once() -> None:
    guard = Guard()
    assert guard.bound(proof()) == (200, "")
    assert guard.bound(proof()) == NO_PROOF
    assert guard.reason == "bad token: the proof was used before (jti)"
    assert guard.bound(proof(jti="proof-2")) == (200, "")


def test_a_proof_is_accepted_once_by_all_workers(tmp_path: Any) -> None:
    guards = [Guard(store=LmdbStore(tmp_path / "store", clock=lambda: NOW)) for _ in range(2)]
    assert [guard.bound(proof())[0] for guard in guards] == [200, 401]
    for guard in guards:
        guard.store.close()


def test_an_invalid_proof_spends_nothing() -> None:
    guard = Guard()
    assert guard.bound(proof(method="POST")) == NO_PROOF
    assert guard.bound(EVE.proof(BOUND)) == NO_PROOF
    assert guard.bound(proof()) == (200, "")


@pytest.mark.parametrize("mode", ["optional", "required"])
def test_a_bound_token_is_no_bearer_token(mode: str) -> None:
    """The downgrade: a thief that has the token, and not the key."""
    guard = Guard(mode)
    assert guard.bearer(BOUND) == INVALID
    assert guard.reason == "bad token: bound to a key, and sent as a bearer token"
    assert guard.bound(proof(), scheme="Bearer") == INVALID
    assert guard.bound(proof()) == (200, "")
    assert guard.bearer(BOUND) == INVALID, "nor is it one when it is cached"


def test_a_bearer_token_where_proofs_are_optional() -> None:
    guard = Guard()
    assert guard.bearer(PLAIN) == (200, "")
    assert guard.identity.scheme == "bearer"
    assert guard.bound(ANN.proof(PLAIN), PLAIN) == INVALID
    assert guard.reason == "bad token: sent as DPoP, and not bound to a key"


def test_a_bearer_token_where_proofs_are_required() -> None:
    guard = Guard("required")
    assert guard.bearer(PLAIN) == INVALID
    assert guard.reason == "bad token: not bound by cnf.jkt"
    assert guard.bound(ANN.proof(PLAIN), PLAIN) == INVALID


def test_without_the_option_nothing_changes() -> None:
    gate = Gate()
    assert gate.bearer(BOUND) == (200, "")
    assert gate.identity.scheme == "bearer"
    assert gate.ask(f"DPoP {BOUND}", HTTP_DPOP=proof()) == (401, "Access token required!")
    assert gate.challenge == 'Bearer realm="api"'
    assert gate.bearer(BOUND, HTTP_DPOP="x")[0] == 200
    assert gate.seen[-1]["HTTP_DPOP"] == "x"


@pytest.mark.parametrize(
    "field",
    [
        None,
        "",
        "x",
        f"{ANN.proof(BOUND)},{ANN.proof(BOUND)}",
        f"{ANN.proof(BOUND)}, {ANN.proof(BOUND, jti='proof-2')}",
        ANN.proof(PLAIN),
        ANN.proof(BOUND, url="http://127.0.0.1/other"),
        ANN.proof(BOUND, url="https://127.0.0.1/"),
        ANN.proof(BOUND, iat=NOW - 100),
        ANN.proof(BOUND, header={"jwk": EVE.jwk}),
    ],
    ids=range(10),
)
def test_another_proof_is_rejected(field: str | None) -> None:
    guard = Guard()
    assert guard.bound(field) == NO_PROOF
    assert guard.seen == []


def test_a_token_of_another_key() -> None:
    eves = signed({**GOOD, "sub": "eve", "cnf": {"jkt": EVE.key}})
    guard = Guard()
    assert guard.bound(ANN.proof(eves), eves) == NO_PROOF
    assert guard.bound(EVE.proof(eves), eves) == (200, "")


@pytest.mark.parametrize(
    "cnf", [None, {}, [], "x", {"jkt": 1}, {"jkt": None}, {"kid": "x"}, {"jwk": ANN.jwk},
            {"x5t#S256": "x"}, {"jkt": ANN.key, "kid": "x"}, {"jkt": ANN.key, "x5t#S256": "x"}]
)  # fmt: skip
def test_a_token_that_is_bound_in_a_way_that_is_not_checked(cnf: Any) -> None:
    token = signed({**GOOD, "cnf": cnf})
    guard = Guard()
    assert guard.bearer(token) == INVALID
    assert guard.bound(ANN.proof(token), token) == INVALID


def test_the_url_is_the_one_that_the_client_used() -> None:
    guard = Guard()
    guard.stack = ClientAddress(guard.stack, trusted_proxies=["192.0.2.1"])  # type: ignore[assignment]
    forwarded = {
        "REMOTE_ADDR": "192.0.2.1",
        "HTTP_X_FORWARDED_PROTO": "https",
        "HTTP_X_FORWARDED_HOST": "api.example",
    }
    assert guard.bound(proof(url="https://api.example/"), **forwarded) == (200, "")
    other = {**forwarded, "REMOTE_ADDR": "192.0.2.9"}
    value = proof(url="https://api.example/", jti="proof-2")
    assert guard.bound(value, **other) == NO_PROOF, "a peer that is no trusted proxy"


def test_the_proof_is_not_forwarded_unless_it_is_kept() -> None:
    guard = Guard()
    guard.bound(proof())
    assert "HTTP_DPOP" not in guard.seen[-1]
    guard.bearer(PLAIN, HTTP_DPOP="x")
    assert "HTTP_DPOP" not in guard.seen[-1]
    keeps = Guard(hide_proof=False)
    value = proof()
    keeps.bound(value)
    assert keeps.seen[-1]["HTTP_DPOP"] == value


def test_challenges_name_both_schemes_where_proofs_are_optional() -> None:
    guard = Guard(dpop_algorithms=["ES256", "EdDSA"])
    dpop = 'DPoP realm="api", algs="ES256 EdDSA"'
    assert challenges(guard) == ['Bearer realm="api"', dpop]
    assert challenges(guard, "Bearer x") == ['Bearer realm="api", error="invalid_token"', dpop]
    wrong = 'DPoP realm="api", error="invalid_dpop_proof", algs="ES256 EdDSA"'
    assert challenges(guard, f"DPoP {BOUND}") == ['Bearer realm="api"', wrong]
    wrong = 'DPoP realm="api", error="invalid_token", algs="ES256 EdDSA"'
    assert challenges(guard, "DPoP x") == ['Bearer realm="api"', wrong]


def test_challenges_name_one_scheme_where_proofs_are_required() -> None:
    guard = Guard("required", dpop_algorithms=["ES256"])
    assert challenges(guard) == ['DPoP realm="api", algs="ES256"']
    wrong = ['DPoP realm="api", error="invalid_token", algs="ES256"']
    assert challenges(guard, f"Bearer {PLAIN}") == challenges(guard, "Bearer x") == wrong


def test_a_missing_scope_is_told_in_the_scheme_of_the_client() -> None:
    guard = Guard(scopes=["read"], dpop_algorithms=["ES256"])
    assert guard.bound(proof()) == (403, "Insufficient scope.")
    assert guard.challenge == (
        'DPoP realm="api", error="insufficient_scope", scope="read", algs="ES256"'
    )


def test_a_nonce_is_required_and_told() -> None:
    guard = Guard(dpop_nonce_secret=SECRET)
    client = Client(guard.stack)

    def ask(nonce: Any, jti: str) -> Any:
        value = ANN.proof(BOUND, url="http://localhost/", nonce=nonce, jti=jti)
        return client.get("/", headers={"Authorization": f"DPoP {BOUND}", "DPoP": value})

    first = ask(..., "1")
    assert first.status_code == 401
    assert (
        'DPoP realm="api", error="use_dpop_nonce"' in first.headers.getlist("WWW-Authenticate")[1]
    )
    assert first.headers["Cache-Control"] == "no-store"
    nonce = first.headers["DPoP-Nonce"]
    second = ask(nonce, "1")
    assert second.status_code == 200, "a proof without a nonce has spent nothing"
    assert "DPoP-Nonce" not in second.headers
    guard.clock.now += 120  # the next period
    third = client.get(
        "/",
        headers={
            "Authorization": f"DPoP {signed({**GOOD, 'exp': NOW + 600, 'cnf': {'jkt': ANN.key}})}",
            "DPoP": ANN.proof(
                signed({**GOOD, "exp": NOW + 600, "cnf": {"jkt": ANN.key}}),
                url="http://localhost/",
                nonce=nonce,
                iat=int(NOW) + 120,
            ),
        },
    )
    assert third.status_code == 200
    assert third.headers["DPoP-Nonce"] != nonce, "the client learns the next one in time"


def test_workers_agree_on_nonces() -> None:
    one, other = (Guard(dpop_nonce_secret=SECRET) for _ in range(2))
    one.bound(proof())
    nonce = Client(one.stack).get(
        "/", headers={"Authorization": f"DPoP {BOUND}", "DPoP": proof(url="http://localhost/")}
    ).headers["DPoP-Nonce"]  # fmt: skip
    assert other.bound(proof(nonce=nonce)) == (200, "")


def test_a_store_that_fails_refuses_proofs_and_no_other_token() -> None:
    store = Fickle(MemoryStore(clock=lambda: NOW))
    guard = Guard(store=store)
    store.broken = True
    assert guard.bound(proof()) == (503, "Tokens cannot be checked at the moment.")
    assert guard.retry_after == "5"
    assert guard.bearer(PLAIN) == (200, "")
    assert guard.stack.store_errors == 1
    store.broken = False
    assert guard.bound(proof()) == (200, "")


def test_a_store_that_fails_may_allow_proofs(caplog: pytest.LogCaptureFixture) -> None:
    store = Fickle(MemoryStore(clock=lambda: NOW))
    guard = Guard(store=store, on_store_error="allow")
    store.broken = True
    logging.getLogger("wsgigate.authenticator").disabled = False  # it is silent in other tests

    def logged() -> list[str]:
        name = "wsgigate.authenticator"
        return [each.getMessage() for each in caplog.records if each.name == name]

    assert guard.bound(proof()) == (200, "")
    assert guard.bound(proof(iat=NOW - 100)) == NO_PROOF
    assert guard.bound(proof()) == (200, "")
    assert guard.stack.store_errors == 2
    assert len(logged()) == 1, "the outage goes on"
    store.broken = False
    assert guard.bound(proof()) == (200, "")
    assert guard.bound(proof()) == NO_PROOF
    assert logged()[1:] == ["proofs can be marked as used again"]


def test_a_full_store_refuses_proofs() -> None:
    class Full(MemoryStore):
        def update(self, key: str, change: Any) -> Any:
            raise StoreError("the store is full of values")

    assert Guard(store=Full()).bound(proof())[0] == 503


class Wrong(MemoryStore):
    def update(self, key: str, change: Any) -> Any:
        raise MisconfiguredStore("WRONGPASS")


def test_a_store_that_never_worked_is_an_error_with_its_cure() -> None:
    with pytest.raises(MisconfiguredStore, match=r"used proofs .* cannot be stored: WRONGPASS; "):
        Guard(store=Wrong()).bound(proof())


def test_a_store_that_was_checked_at_the_start_fails_for_a_time() -> None:
    store = Wrong()
    store.checked = True  # type: ignore[attr-defined]
    assert Guard(store=store).bound(proof())[0] == 503


def test_the_proof_is_hidden_from_apps_behind_alternatives() -> None:
    for gate, hidden in ((Guard(), True), (Guard(hide_proof=False), False), (Gate(), False)):
        environ = {"HTTP_DPOP": "a proof"}
        gate.stack.hide(environ)
        assert (not environ) is hidden


def test_a_denied_token_is_denied_with_its_proof() -> None:
    denied = DenyList(MemoryStore(clock=lambda: NOW), staleness=0)
    guard = Guard(deny_list=denied)
    assert guard.bound(proof()) == (200, "")
    denied.deny_token(BOUND)
    assert guard.bound(proof(jti="proof-2")) == INVALID
    assert guard.challenge.startswith('DPoP realm="api", error="invalid_token"')


def test_an_expired_token_is_expired_with_its_proof() -> None:
    guard = Guard()
    assert guard.bound(proof()) == (200, "")
    guard.clock.now += 95
    assert guard.bound(proof(jti="proof-2", iat=NOW + 95)) == INVALID


def test_two_tokens_are_refused() -> None:
    guard = Guard()
    for value in (f"DPoP {BOUND},DPoP {BOUND}", f"DPoP {BOUND}, Bearer {PLAIN}"):
        assert guard.ask(value, HTTP_DPOP=proof()) == INVALID
    assert guard.ask(f"Basic x,DPoP {BOUND}", HTTP_DPOP=proof())[0] == 401


def test_an_optional_authenticator_drops_the_identity_of_another_token() -> None:
    guard = Guard(required=False)
    outer = Identity(subject="ann", scheme="dpop")
    guard.ask(**{IDENTITY: outer})
    assert IDENTITY not in guard.seen[-1]


class Certificate:
    thumbprint = "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"


BY_CERTIFICATE = signed({**GOOD, "cnf": {"x5t#S256": Certificate.thumbprint}})


@pytest.mark.parametrize("mode", ["optional", "required"])
@pytest.mark.parametrize("certificate", [Certificate(), {"thumbprint": Certificate.thumbprint}])
def test_a_token_with_its_certificate(mode: str, certificate: object) -> None:
    guard = Guard("off", certificate_bound=mode)
    assert guard.bearer(BY_CERTIFICATE, **{CLIENT_CERTIFICATE: certificate}) == (200, "")


@pytest.mark.parametrize(
    "certificate",
    [None, "x", object(), {}, {"thumbprint": None}, {"thumbprint": "é"}, {"thumbprint": "x"}],
    ids=range(7),
)
def test_a_token_without_its_certificate(certificate: object) -> None:
    guard = Guard("off", certificate_bound="optional")
    environ = {} if certificate is None else {CLIENT_CERTIFICATE: certificate}
    assert guard.bearer(BY_CERTIFICATE, **environ) == INVALID
    assert guard.bearer(PLAIN, **environ) == (200, "")
    assert guard.bearer(BOUND, **environ) == INVALID, "bound in a way that is not checked"


def test_every_token_must_be_bound_where_that_is_required() -> None:
    guard = Guard("off", certificate_bound="required")
    assert guard.bearer(PLAIN, **{CLIENT_CERTIFICATE: Certificate()}) == INVALID


def test_a_token_that_is_bound_by_both() -> None:
    token = signed({**GOOD, "cnf": {"jkt": ANN.key, "x5t#S256": Certificate.thumbprint}})
    guard = Guard(certificate_bound="optional")
    assert guard.bound(ANN.proof(token), token) == INVALID
    assert guard.bound(ANN.proof(token), token, **{CLIENT_CERTIFICATE: Certificate()}) == (200, "")


@pytest.mark.parametrize("combined", [False, True], ids=["in front", "all of"])
def test_the_certificate_is_the_one_that_was_verified(tmp_path: Path, combined: bool) -> None:
    authority = Authority(tmp_path)

    def pem(name: str) -> str:
        return authority.issue(name, []).read_text().partition("-----BEGIN PRIVATE")[0]

    orders, other = pem("orders"), pem("other")
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(orders)).digest()
    thumbprint = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    token = signed({**GOOD, "cnf": {"x5t#S256": thumbprint}})
    guard = Guard("off", certificate_bound="required")
    if combined:
        bound = partial(
            Authenticator,
            algorithms=["HS256"],
            secret=TOKEN_SECRET,
            certificate_bound="required",
            store=MemoryStore(),
            clock=guard.clock,
        )
        guard.stack = AllOf(guard.app, [ClientCertificate, bound])  # type: ignore[assignment]
    else:
        guard.stack = ClientCertificate(guard.stack, required=False)  # type: ignore[assignment]

    def with_certificate(text: str, verified: str = "SUCCESS") -> tuple[int, str]:
        return guard.bearer(token, SSL_CLIENT_CERT=text, SSL_CLIENT_VERIFY=verified)

    assert with_certificate(orders) == (200, "")
    assert with_certificate(other)[0] == 401
    assert with_certificate(orders, "NONE")[0] == 401
    assert guard.bearer(token)[0] == 401
    assert guard.bearer(token, **{CLIENT_CERTIFICATE: {"thumbprint": thumbprint}})[0] == 401


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dpop": "yes"}, 'dpop is "off", "optional" or "required", not \'yes\''),
        ({"certificate_bound": True}, 'certificate_bound is "off", "optional" or "required"'),
        ({"dpop": "off", "dpop_nonce_secret": SECRET}, "dpop_nonce_secret: requires dpop"),
        ({"dpop_nonce_secret": "short"}, "dpop_nonce_secret: 5 bytes"),
        ({"dpop_algorithms": ["HS256"]}, "dpop_algorithms: 'HS256'"),
        ({"dpop_algorithms": []}, "dpop_algorithms: none"),
        ({"dpop_max_age": 0}, "dpop_max_age: 1 to 3600 seconds, not 0"),
    ],
)
def test_invalid_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.split(",", maxsplit=1)[0].replace("(", r"\(")):
        Guard(**options)


def test_the_response_has_no_token_and_no_proof() -> None:
    guard = Guard()
    guard.bound(EVE.proof(BOUND))
    assert BOUND[:20] not in guard.body.decode()
    assert BOUND[:20] not in str(guard.reason)


def test_close_closes_the_store_of_its_own(tmp_path: Any) -> None:
    stack = Authenticator(
        lambda environ, start_response: [],
        algorithms=["HS256"],
        secret=SECRET,
        dpop="required",
        store=f"lmdb:{tmp_path / 'store'}",
    )
    stack.close()
