"""The authenticator of signed requests (RFC 9421), and the attacks on it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from werkzeug.test import Client

from tests.support.logs import silence
from tests.support.signing import COVERED, Requester, digest_of, request
from tests.support.stores import Fickle
from tests.support.tokens import NOW, Clock
from wsgigate.auth.identity import Identity
from wsgigate.http.wsgi import IDENTITY, PEER_TRUSTED, REASON
from wsgigate.middleware.client_address import ClientAddress
from wsgigate.middleware.message_signature import SignatureAuthenticator
from wsgigate.store import MisconfiguredStore
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore

_silent = silence("wsgigate.signatures")

ANN = Requester()
INVALID = (401, "Invalid signature!")
URL = "http://api.example/orders?page=2"


class Gate:
    """An authenticator of signed requests around an app that reads the body."""

    def __init__(self, **options: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.clock = Clock()
        options.setdefault("signers", [ANN.signer(scopes=["orders:read"])])
        options.setdefault("store", MemoryStore(clock=self.clock))
        self.stack: Any = SignatureAuthenticator(self.app, clock=self.clock, **options)

    def app(self, environ: Any, start_response: Any) -> list[bytes]:
        self.seen.append(environ)
        self.bodies.append(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return [b"ok"]

    def ask(self, environ: dict[str, Any]) -> tuple[int, str]:
        answer: list[Any] = []
        self.body = b"".join(self.stack(environ, lambda *args: answer.extend(args)))
        self.fields = dict(answer[1])
        self.reason = environ.get(REASON)
        ok = answer[0] == "200 OK"
        return int(answer[0][:3]), "" if ok else json.loads(self.body)["detail"]


def test_a_signed_request_passes_with_its_caller() -> None:
    gate = Gate()
    assert gate.ask(ANN.environ()) == (200, "")
    identity = gate.seen[0][IDENTITY]
    assert identity == Identity(
        "ann", "signature", client="ann-1", claims={"sub": "ann", "key_id": "ann-1"},
        scopes=frozenset(["orders:read"]),
    )  # fmt: skip


def test_a_signed_body_reaches_the_app() -> None:
    gate = Gate()
    body = b"x" * 200_000
    assert gate.ask(ANN.environ("POST", body=body)) == (200, "")
    assert gate.bodies == [body]


def test_a_chunked_body_reaches_the_app() -> None:
    gate = Gate()
    environ = ANN.environ("POST", body=b"hello")
    del environ["CONTENT_LENGTH"]
    environ["HTTP_TRANSFER_ENCODING"] = "chunked"
    environ["wsgi.input_terminated"] = True
    assert gate.ask(environ) == (200, "")
    assert gate.bodies == [b"hello"]


def test_a_request_without_a_signature_learns_which_one_it_needs() -> None:
    gate = Gate(tag="shop")
    assert gate.ask(request("GET", URL, b"")) == (401, "Signature required!")
    assert gate.fields["WWW-Authenticate"] == 'Signature realm="api"'
    assert gate.fields["Accept-Signature"] == (
        'sig=("@method" "@target-uri" "content-digest");created;keyid;tag="shop"'
    )


def test_a_signature_is_accepted_once() -> None:
    gate = Gate()
    for changes in ({}, {"nonce": "n-1"}):
        assert gate.ask(ANN.environ(**changes)) == (200, "")
        assert gate.ask(ANN.environ(**changes)) == INVALID
    assert gate.reason == "bad signature: it was used before (nonce)"
    assert gate.ask(ANN.environ(nonce="n-2")) == (200, "")
    assert gate.ask(ANN.environ(created=int(NOW) - 1)) == (200, "")
    assert gate.ask(ANN.environ("DELETE", nonce="n-2")) == INVALID, "whatever else it signs"


def test_a_signature_is_accepted_once_by_all_workers(tmp_path: Any) -> None:
    stores = [LmdbStore(tmp_path / "store", clock=lambda: NOW) for _ in range(2)]
    gates = [Gate(store=store) for store in stores]
    assert [gate.ask(ANN.environ())[0] for gate in gates] == [200, 401]
    for store in stores:
        store.close()


def test_nonces_of_different_keys_are_different() -> None:
    bob = Requester("bob-1")
    gate = Gate(signers=[ANN.signer(), bob.signer(subject="bob")])
    assert gate.ask(ANN.environ(nonce="1")) == (200, "")
    assert gate.ask(bob.environ(nonce="1")) == (200, "")
    assert gate.seen[1][IDENTITY].subject == "bob"


def test_an_invalid_signature_spends_nothing() -> None:
    gate = Gate()
    forged = {**ANN.environ(nonce="1"), "REQUEST_METHOD": "DELETE"}
    assert gate.ask(forged) == INVALID
    body = ANN.environ("POST", body=b"hello", nonce="2")
    body["wsgi.input"] = io.BytesIO(b"other")
    assert gate.ask(body) == INVALID
    assert gate.ask(ANN.environ(nonce="1")) == (200, "")
    assert gate.ask(ANN.environ("POST", body=b"hello", nonce="2")) == (200, "")


@pytest.mark.parametrize(
    "changes",
    [
        {"REQUEST_METHOD": "DELETE"},
        {"HTTP_HOST": "evil.example"},
        {"HTTP_HOST": "api.example:8080"},
        {"wsgi.url_scheme": "https"},
        {"QUERY_STRING": "page=3", "RAW_URI": "/orders?page=3"},
        {"QUERY_STRING": "", "RAW_URI": "/orders"},
        {"QUERY_STRING": "page=2&x=1", "RAW_URI": "/orders?page=2&x=1"},
        {"PATH_INFO": "/admin", "RAW_URI": "/admin?page=2"},
        {"PATH_INFO": "/admin"},
        {"SCRIPT_NAME": "/v2"},
        {"PATH_INFO": "/orders/../admin", "RAW_URI": "/orders/../admin?page=2"},
        {"HTTP_HOST": ""},
        {"HTTP_SIGNATURE": ""},
        {"HTTP_SIGNATURE_INPUT": ""},
        {"HTTP_SIGNATURE": "sig=:AAAA:"},
        {"HTTP_SIGNATURE_INPUT": "x" * 5000},
        {"HTTP_SIGNATURE_INPUT": ",".join(f"s{n}=()" for n in range(500))},
    ],
    ids=range(17),
)
def test_a_changed_request_is_rejected(changes: dict[str, Any]) -> None:
    gate = Gate()
    assert gate.ask({**ANN.environ(), **changes}) == INVALID
    assert gate.seen == []


def test_all_invalid_signatures_get_the_same_response() -> None:
    gate = Gate()
    answers = []
    for environ in (
        ANN.environ(keyid="nobody"),
        Requester("ann-1").environ(),
        ANN.environ(created=1),
        ANN.environ(covers=("@method",)),
        {**ANN.environ(), "HTTP_SIGNATURE": "x"},
        {**ANN.environ(), "REQUEST_METHOD": "PUT"},
    ):
        assert gate.ask(environ) == INVALID
        answers.append((gate.body, gate.fields))
    assert all(answer == answers[0] for answer in answers)
    assert gate.fields["WWW-Authenticate"] == 'Signature realm="api", error="invalid_signature"'


@pytest.mark.parametrize("digest", [None, "", "sha-256=:AAAA:", digest_of(b"other"), "md5=:AAAA:"])
def test_another_digest_of_the_body_is_rejected(digest: str | None) -> None:
    gate = Gate()
    environ = ANN.environ("POST", body=b"hello")
    environ["HTTP_CONTENT_DIGEST"] = digest
    if digest is None:
        del environ["HTTP_CONTENT_DIGEST"]
    assert gate.ask(environ) == INVALID
    signed = {"content-digest": digest} if digest else {}
    covers = (*COVERED, "content-digest") if digest else COVERED
    environ = {**request("POST", URL, b"hello"), "HTTP_CONTENT_DIGEST": digest or ""}
    fields = ANN.fields("POST", covers=covers, values=signed)
    environ |= {f"HTTP_{name.upper().replace('-', '_')}": each for name, each in fields.items()}
    assert gate.ask(environ) == INVALID, "although it is signed"
    assert gate.seen == []


def test_another_body_is_rejected_before_the_app_is_called() -> None:
    gate = Gate()
    environ = ANN.environ("POST", body=b"hello")
    environ["wsgi.input"] = io.BytesIO(b"jello")
    assert gate.ask(environ) == INVALID
    assert gate.reason == "bad signature: the body has another digest by sha-256"
    assert gate.seen == []
    assert environ["wsgi.input"].read() == b"jello", "another authenticator can read it"


def test_a_body_that_was_added_is_rejected() -> None:
    gate = Gate()
    assert gate.ask({**ANN.environ("POST"), **_body(b"x")}) == INVALID
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": io.BytesIO(b"x")}
    assert gate.ask({**ANN.environ("POST"), **chunked}) == INVALID
    empty = digest_of(b"")
    covers = (*COVERED, "content-digest")
    signed = ANN.environ("POST", covers=covers, values={"content-digest": empty})
    assert gate.ask({**signed, **_body(b"x")}) == INVALID
    assert gate.ask(signed) == (200, "")


def _body(body: bytes) -> dict[str, Any]:
    return {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}


class Unread:
    """A body that nobody may read."""

    def read(self, size: int = -1) -> bytes:
        raise AssertionError("the body was read")


def test_nothing_is_read_of_a_body_without_a_valid_signature() -> None:
    gate = Gate()
    for environ in (
        ANN.environ("POST", body=b"hello", created=1),
        Requester("ann-1").environ("POST", body=b"hello"),
        Requester("eve-1").environ("POST", body=b"hello"),
    ):
        environ["wsgi.input"] = Unread()
        assert gate.ask(environ) == INVALID


def test_a_large_body_is_rejected_with_413() -> None:
    gate = Gate(max_body="1KiB")
    assert gate.ask(ANN.environ("POST", body=b"x" * 1024)) == (200, "")
    large = ANN.environ("POST", body=b"x" * 1025)
    large["wsgi.input"] = Unread()
    assert gate.ask(large) == (413, "A signed request body is at most 1024 bytes.")
    chunked = ANN.environ("POST", body=b"x" * 5000)
    del chunked["CONTENT_LENGTH"]
    chunked |= {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    assert gate.ask(chunked)[0] == 413
    assert len(gate.seen) == 1


def test_a_truncated_body_is_rejected_with_400() -> None:
    gate = Gate()
    environ = ANN.environ("POST", body=b"hello")
    environ["wsgi.input"] = io.BytesIO(b"hell")
    assert gate.ask(environ) == (400, "The body could not be read to its end.")
    environ = ANN.environ("POST", body=b"hello")
    environ["CONTENT_LENGTH"] = "5x"
    assert gate.ask(environ)[0] == 400
    environ["CONTENT_LENGTH"], environ["HTTP_TRANSFER_ENCODING"] = "5", "chunked"
    assert gate.ask(environ) == (400, "Ambiguous body length.")
    assert gate.seen == []


@pytest.mark.parametrize("connection", ["x-role", "keep-alive, X-Role", "close,x-role ,te"])
def test_a_covered_field_reaches_the_service_or_the_request_is_rejected(connection: str) -> None:
    """Smuggling: ``Connection`` names a field that the next hop removes."""
    gate = Gate()
    environ = ANN.environ(covers=(*COVERED, "x-role"), values={"x-role": "admin"})
    assert gate.ask({**environ, "HTTP_CONNECTION": connection}) == INVALID
    assert gate.ask({**environ, "HTTP_CONNECTION": "," * 200}) == INVALID
    assert gate.ask({**environ, "HTTP_X_ROLE": "user"}) == INVALID
    assert gate.ask({**environ, "HTTP_X_ROLE": "admin, admin"}) == INVALID
    assert gate.ask({**environ, "HTTP_CONNECTION": "close"}) == (200, "")


def test_a_covered_field_must_be_there() -> None:
    gate = Gate()
    environ = ANN.environ(covers=(*COVERED, "x-role"), values={"x-role": "admin"})
    del environ["HTTP_X_ROLE"]
    assert gate.ask(environ) == INVALID
    environ = ANN.environ(covers=(*COVERED, "content-type"), values={"content-type": ""})
    assert gate.ask({**environ, "CONTENT_TYPE": ""}) == INVALID


def test_the_type_of_a_body_may_be_required_to_be_covered() -> None:
    gate = Gate(components=["content-type"])
    assert gate.ask(ANN.environ()) == INVALID
    environ = ANN.environ(covers=(*COVERED, "content-type"), values={"content-type": "text/css"})
    assert gate.ask({**environ, "CONTENT_TYPE": "text/css"}) == (200, "")
    assert gate.ask({**environ, "CONTENT_TYPE": "text/html"}) == INVALID


def test_the_url_is_the_one_that_the_client_used() -> None:
    gate = Gate()
    gate.stack = ClientAddress(gate.stack, trusted_proxies=["192.0.2.1"])
    signed = ANN.environ(url="https://shop.example/orders?page=2")
    behind = {
        **signed,
        "wsgi.url_scheme": "http",
        "HTTP_HOST": "10.0.0.9",
        "HTTP_X_FORWARDED_PROTO": "https",
        "HTTP_X_FORWARDED_HOST": "shop.example",
    }
    assert gate.ask({**behind, "REMOTE_ADDR": "192.0.2.9", PEER_TRUSTED: True}) == INVALID
    assert gate.ask({**behind, "REMOTE_ADDR": "192.0.2.1"}) == (200, "")


def test_a_path_that_is_forwarded_in_another_spelling_is_signed_in_that() -> None:
    gate = Gate()
    spelled = {"PATH_INFO": "/~ann//x", "RAW_URI": "/%7Eann//x", "QUERY_STRING": ""}
    assert gate.ask({**ANN.environ(url="http://api.example/%7Eann//x"), **spelled}) == INVALID
    assert gate.ask({**ANN.environ(url="http://api.example/~ann/x"), **spelled}) == (200, "")


def test_a_signature_expires() -> None:
    gate = Gate()
    gate.clock.now += 64
    assert gate.ask(ANN.environ()) == (200, "")
    gate.clock.now += 1
    assert gate.ask(ANN.environ(nonce="1")) == INVALID
    assert gate.ask(ANN.environ(created=int(NOW) + 71)) == INVALID
    assert gate.ask(ANN.environ(created=int(NOW) + 70)) == (200, "")


def test_a_used_signature_stays_used_as_long_as_it_is_valid() -> None:
    gate = Gate(max_age=3600)
    early = ANN.environ(created=int(NOW) + 5, nonce="1")
    assert gate.ask(dict(early)) == (200, "")
    for _ in range(10):
        gate.clock.now += 360
        assert gate.ask(dict(early)) == INVALID


def test_scopes_of_the_signer() -> None:
    gate = Gate(scopes=["orders:write"])
    assert gate.ask(ANN.environ()) == (403, "Insufficient scope.")
    assert 'error="insufficient_scope", scope="orders:write"' in gate.fields["WWW-Authenticate"]
    assert Gate(scopes=["orders:read"]).ask(ANN.environ()) == (200, "")


def test_an_optional_signature() -> None:
    gate = Gate(required=False)
    assert gate.ask(request("GET", URL, b"")) == (200, "")
    outer = Identity("bob", "basic")
    assert gate.ask({**request("GET", URL, b""), IDENTITY: outer}) == (200, "")
    assert gate.seen[-1][IDENTITY] is outer
    assert gate.ask({**request("GET", URL, b""), IDENTITY: "forged"}) == (200, "")
    assert IDENTITY not in gate.seen[-1]
    assert gate.ask({**ANN.environ(), "HTTP_SIGNATURE": ""}) == INVALID


def test_an_identity_from_outside_is_removed() -> None:
    gate = Gate(exempt={"paths": ["/health"]})
    forged = {IDENTITY: Identity("root", "signature")}
    environ = {**request("GET", "http://api.example/health", b""), **forged}
    assert gate.ask(environ) == (200, "")
    assert IDENTITY not in gate.seen[0]


def test_preflights_pass_unless_they_need_a_signature() -> None:
    preflight = {
        **request("OPTIONS", URL, b""),
        "HTTP_ORIGIN": "https://shop.example",
        "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "PUT",
    }
    assert Gate().ask(dict(preflight)) == (200, "")
    assert Gate(preflights=True).ask(dict(preflight))[0] == 401


def test_a_store_that_fails_refuses_all_or_allows_the_valid() -> None:
    store = Fickle(MemoryStore(clock=lambda: NOW))
    refuses, allows = Gate(store=store), Gate(store=store, on_store_error="allow")
    store.broken = True
    answer = (503, "Signatures cannot be checked at the moment.")
    assert refuses.ask(ANN.environ()) == answer
    assert refuses.fields["Retry-After"] == "5"
    assert refuses.stack.store_errors == 1
    assert allows.ask(ANN.environ()) == (200, "")
    assert allows.ask({**ANN.environ(), "REQUEST_METHOD": "PUT"}) == INVALID
    store.broken = False
    assert refuses.ask(ANN.environ()) == (200, "")


def test_a_store_that_never_worked_is_an_error_with_its_cure() -> None:
    class Wrong(MemoryStore):
        def update(self, key: str, change: Any) -> Any:
            raise MisconfiguredStore("WRONGPASS")

    for mode in ("refuse", "allow"):
        gate = Gate(store=Wrong(), on_store_error=mode)
        with pytest.raises(MisconfiguredStore, match=r"used signatures .*: WRONGPASS; correct"):
            gate.ask(ANN.environ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signers": []}, "signers: expected a list"),
        ({"signers": "x"}, "signers: expected a list"),
        ({"signers": [1]}, "signers\\[0\\]: expected a table, not int"),
        ({"signers": [{}]}, "signers\\[0\\]: missing 1 required"),
        ({"signers": [{"subject": "a", "key": "x"}]}, "signers\\[0\\]: got an unexpected"),
        ({"signers": [{"subject": "a", "id": "b"}]}, "signers\\[0\\].public_key: one of"),
        ({"components": "date"}, "components: expected a list"),
        ({"max_body": "x"}, "max_body: "),
        ({"max_age": 0}, "max_age: 1 to 86400"),
        ({"on_store_error": "x"}, "on_store_error is"),
        ({"realm": '"'}, "realm: "),
        ({"scopes": ["x"], "required": False}, "scopes: cannot be required"),
    ],
)
def test_invalid_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gate(**options)


def test_the_library_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgigate.auth.message_signature.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install"):
        Gate()


def test_behind_werkzeug() -> None:
    gate = Gate()
    signed = ANN.fields("POST", "http://localhost/x", covers=(*COVERED, "content-digest"),
                        values={"content-digest": digest_of(b"hello")})  # fmt: skip
    headers = {**signed, "Content-Digest": digest_of(b"hello")}
    assert Client(gate.stack).post("/x", data=b"hello", headers=headers).status_code == 200
    assert gate.bodies == [b"hello"]
