"""ClientCertificate: where a certificate may come from, which is accepted, and what others see."""

from __future__ import annotations

import io
import ssl
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from werkzeug.test import Client

from tests.support.certificates import Authority
from wsgigate import (
    AllOf,
    AnyOf,
    Authenticator,
    Authorizer,
    ClientAddress,
    ClientCertificate,
    Identity,
    Logger,
)
from wsgigate.auth.client_certificate import from_pem
from wsgigate.auth.jwt import mint
from wsgigate.http.wsgi import CLIENT_CERTIFICATE, IDENTITIES, IDENTITY
from wsgigate.testing import FakeClock

NAMES = [x509.DNSName("a.example"), x509.UniformResourceIdentifier("spiffe://shop/orders")]
PROXY = {"REMOTE_ADDR": "10.0.0.1"}
STRANGER = {"REMOTE_ADDR": "192.0.2.1"}
FIELDS = ("HTTP_CLIENT_CERT", "HTTP_CLIENT_CERT_CHAIN", "HTTP_X_FORWARDED_CLIENT_CERT")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def pem(authority: Authority) -> str:
    return authority.issue("orders", NAMES).read_text().partition("-----BEGIN PRIVATE")[0]


class App:
    """An app that keeps the environ of the last request that reached it."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.seen = environ.copy()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    @property
    def caller(self) -> Any:
        return self.seen.get(IDENTITY)


@pytest.fixture
def app() -> App:
    return App()


def of_server(pem: str) -> dict[str, Any]:
    return {"environ_overrides": {"SSL_CLIENT_CERT": pem, "SSL_CLIENT_VERIFY": "SUCCESS"}}


def behind_proxy(app: Any, **options: Any) -> Client:
    return Client(ClientAddress(ClientCertificate(app, **options), trusted_proxies=["10.0.0.1"]))


def der(pem: str) -> str:
    return "".join(pem.split("-----")[2].split())


def sent(source: str, pem: str) -> dict[str, str]:
    """Return the fields that a proxy sends."""
    return {
        "client-cert": {"Client-Cert": f":{der(pem)}:"},
        "xfcc": {
            "X-Forwarded-Client-Cert": f"Hash={from_pem(pem).certificate.fingerprint};"
            f'Cert="{quote(pem, safe="")}"'
        },
        "header:X-Cert": {"X-Cert": quote(pem)},
        "header:X-Forwarded-Tls-Client-Cert": {
            "X-Forwarded-Tls-Client-Cert": quote(der(pem), safe="")
        },
    }[source]


SOURCES = ("client-cert", "xfcc", "header:X-Cert", "header:X-Forwarded-Tls-Client-Cert")


def test_the_certificate_of_the_server_identifies_the_caller(app: App, pem: str) -> None:
    client = Client(ClientCertificate(app, subject="san_uri"))
    assert client.get("/", **of_server(pem)).status_code == 200
    certificate = from_pem(pem).certificate
    caller = app.caller
    assert isinstance(caller, Identity)
    assert (caller.subject, caller.scheme) == ("spiffe://shop/orders", "mtls")
    assert (caller.issuer, caller.client) == ("CN=authority", certificate.fingerprint)
    assert caller.claims["sub"] == "spiffe://shop/orders"
    assert caller.claims["subject_dn"] == "CN=orders"
    assert caller.claims["san"] == {"dns": ("a.example",), "uri": ("spiffe://shop/orders",)}
    assert app.seen[CLIENT_CERTIFICATE] == certificate
    assert app.seen[CLIENT_CERTIFICATE].thumbprint == certificate.thumbprint


@pytest.mark.parametrize("verify", ["NONE", "GENEROUS", "FAILED:expired", ""])
def test_what_the_server_has_not_verified_is_no_certificate(
    verify: str, app: App, pem: str
) -> None:
    overrides = {"SSL_CLIENT_CERT": pem, "SSL_CLIENT_VERIFY": verify}
    answer = Client(ClientCertificate(app)).get("/", environ_overrides=overrides)
    assert answer.status_code == 401
    assert answer.json["detail"] == "Client certificate required!"
    assert answer.headers["WWW-Authenticate"] == 'Certificate realm="api"'


def test_a_server_that_has_the_socket_only_is_asked_for_the_certificate(app: App, pem: str) -> None:
    class Socket:
        def getpeercert(self, binary_form: bool) -> bytes:
            return ssl.PEM_cert_to_DER_cert(pem)

    client = Client(ClientCertificate(app, subject="cn"))
    assert client.get("/", environ_overrides={"gunicorn.socket": Socket()}).status_code == 200
    assert app.caller.subject == "orders"
    assert client.get("/", environ_overrides={"gunicorn.socket": object()}).status_code == 401


@pytest.mark.parametrize("source", SOURCES)
def test_a_trusted_proxy_sends_the_certificate(source: str, app: App, pem: str) -> None:
    client = behind_proxy(app, source=source, subject="cn")
    fields = sent(source, pem)
    for _ in range(2):  # the second time from the cache
        assert client.get("/", headers=fields, environ_base=PROXY).status_code == 200
        assert app.caller.subject == "orders"
        assert not [key for key in app.seen if "CERT" in key.upper() and key.startswith("HTTP_")]
    assert client.get("/", headers=fields, environ_base=STRANGER).status_code == 401
    assert Client(ClientCertificate(app, source=source)).get("/", headers=fields).status_code == 401


@pytest.mark.parametrize("source", ["server", *SOURCES])
@pytest.mark.parametrize("peer", [PROXY, STRANGER], ids=["proxy", "stranger"])
def test_a_field_of_another_source_never_counts(
    source: str, peer: dict[str, str], app: App, pem: str
) -> None:
    client = behind_proxy(app, source=source, required=False)
    for other in SOURCES:
        if other != source:
            fields = sent(other, pem)
            assert client.get("/", headers=fields, environ_base=peer).status_code == 200
            assert not app.caller
            assert not set(FIELDS) & app.seen.keys()


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ("client-cert", {"Client-Cert": "::"}),
        ("client-cert", {"Client-Cert": ""}),
        ("header:X-Cert", {"X-Cert": ""}),
        ("xfcc", {"X-Forwarded-Client-Cert": ""}),
    ],
)
def test_a_proxy_sends_an_empty_field_of_a_client_without_a_certificate(
    source: str, fields: dict[str, str], app: App
) -> None:
    answer = behind_proxy(app, source=source).get("/", headers=fields, environ_base=PROXY)
    assert (answer.status_code, answer.json["detail"]) == (401, "Client certificate required!")
    optional = behind_proxy(app, source=source, required=False)
    assert optional.get("/", headers=fields, environ_base=PROXY).status_code == 200
    assert app.caller is None
    assert CLIENT_CERTIFICATE not in app.seen


def test_no_field_passes_for_the_environ_of_a_server(app: App, pem: str) -> None:
    fields = {
        "Ssl-Client-Cert": pem.replace("\n", " "),
        "Ssl-Client-Verify": "SUCCESS",
        "Wsgigate.Client-Certificate": "x",
    }
    assert Client(ClientCertificate(app)).get("/", headers=fields).status_code == 401
    forged = {IDENTITY: Identity("root", "mtls"), CLIENT_CERTIFICATE: "forged"}
    optional = Client(ClientCertificate(app, required=False))
    assert optional.get("/", environ_overrides=forged).status_code == 200
    assert CLIENT_CERTIFICATE not in app.seen


def test_the_fields_of_the_proxy_are_kept_only_if_asked_for(app: App, pem: str) -> None:
    options: dict[str, Any] = {"source": "client-cert", "hide_credentials": False}
    client = behind_proxy(app, **options)
    fields = {**sent("client-cert", pem), "X-Forwarded-Client-Cert": "forged"}
    assert client.get("/", headers=fields, environ_base=PROXY).status_code == 200
    assert app.seen["HTTP_CLIENT_CERT"] == fields["Client-Cert"]
    assert "HTTP_X_FORWARDED_CLIENT_CERT" not in app.seen
    optional = behind_proxy(app, required=False, **options)
    assert optional.get("/", headers=fields, environ_base=STRANGER).status_code == 200
    assert "HTTP_CLIENT_CERT" not in app.seen


def test_fields_are_removed_whichever_authenticator_accepted_the_request(
    app: App, pem: str
) -> None:
    class Anyone:
        def __init__(self, app: Any, *, refuse: Any) -> None:
            self.app = app

        def __call__(self, environ: Any, start_response: Any) -> Any:
            environ[IDENTITY] = Identity("anyone", "test")
            return self.app(environ, start_response)

    client = Client(AnyOf(app, [Anyone, ClientCertificate]))
    fields = {**sent("client-cert", pem), **sent("xfcc", pem)}
    assert client.get("/", headers=fields).status_code == 200
    assert not set(FIELDS) & app.seen.keys()


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        ({"subject": "san_email"}, 401, "has no email address"),
        ({"subject": "cn", "allow": ["billing", "order?"]}, 403, "not in allow"),
        ({"subject": "cn", "allow": ["ord*"]}, 200, ""),
        ({"revoked": ["ab" * 32]}, 200, ""),
    ],
)
def test_a_certificate_must_be_allowed(
    options: dict[str, Any], status: int, reason: str, app: App, pem: str
) -> None:
    log = io.StringIO()
    logged = Logger(ClientCertificate(app, **options), stream=log)
    assert Client(logged).get("/", buffered=True, **of_server(pem)).status_code == status
    logged.close()
    assert reason in log.getvalue()


def test_a_revoked_certificate_is_rejected(app: App, pem: str) -> None:
    revoked = [from_pem(pem).certificate.fingerprint.upper()]
    answer = Client(ClientCertificate(app, revoked=revoked)).get("/", **of_server(pem))
    assert (answer.status_code, answer.json["detail"]) == (401, "Invalid client certificate!")


def test_a_certificate_expires_while_its_connection_is_open(app: App, pem: str) -> None:
    certificate = from_pem(pem).certificate
    assert certificate.not_after is not None
    assert certificate.not_before is not None
    clock = FakeClock(certificate.not_after - 1)
    client = Client(ClientCertificate(app, clock=clock))
    assert client.get("/", **of_server(pem)).status_code == 200
    clock.advance(1)
    assert client.get("/", **of_server(pem)).status_code == 401
    clock.now = certificate.not_before - 1
    assert client.get("/", **of_server(pem)).status_code == 401
    early = Client(ClientCertificate(app, clock=clock))
    assert early.get("/", **of_server(pem)).status_code == 401


def test_authorities_are_checked_if_given(
    app: App, pem: str, authority: Authority, folder: Path
) -> None:
    other = Authority(folder, "other").issue("orders2", NAMES).read_text()
    other = other.partition("-----BEGIN PRIVATE")[0]
    ca = str(authority.path)
    for source in SOURCES:
        client = behind_proxy(app, source=source, ca=ca)
        good, bad = sent(source, pem), sent(source, other)
        assert client.get("/", headers=good, environ_base=PROXY).status_code == 200
        assert client.get("/", headers=bad, environ_base=PROXY).status_code == 401
    names = {"X-Forwarded-Client-Cert": f"Hash={'ab' * 32};Subject=CN=orders"}
    client = behind_proxy(app, source="xfcc", ca=ca)
    assert client.get("/", headers=names, environ_base=PROXY).status_code == 401
    trusting = behind_proxy(app, source="xfcc", subject="cn")
    assert trusting.get("/", headers=names, environ_base=PROXY).status_code == 200
    assert app.caller.subject == "orders"


def test_a_chain_may_be_sent_as_well(app: App, authority: Authority, folder: Path) -> None:
    between = Authority(folder, "between", issuer=authority)
    leaf = between.issue("leaf", NAMES).read_text().partition("-----BEGIN PRIVATE")[0]
    middle = between.path.read_text().partition("-----BEGIN PRIVATE")[0]
    client = behind_proxy(app, source="client-cert", ca=str(authority.path))
    fields = sent("client-cert", leaf)
    assert client.get("/", headers=fields, environ_base=PROXY).status_code == 401
    chained = {**fields, "Client-Cert-Chain": f":{der(middle)}:"}
    assert client.get("/", headers=chained, environ_base=PROXY).status_code == 200
    element = sent("xfcc", leaf)["X-Forwarded-Client-Cert"]
    whole = {"X-Forwarded-Client-Cert": f'{element};Chain="{quote(leaf + middle, safe="")}"'}
    client = behind_proxy(app, source="xfcc", ca=str(authority.path))
    assert client.get("/", headers=whole, environ_base=PROXY).status_code == 200


def test_it_works_with_rules_and_beside_other_credentials(app: App, pem: str) -> None:
    guarded = Authorizer(app, claims={"san.uri": "spiffe://shop/orders"})
    client = Client(AllOf(guarded, [ClientCertificate, ClientCertificate]))
    assert client.get("/", **of_server(pem)).status_code == 200
    rejecting = Authorizer(app, claims={"common_name": "billing"})
    assert Client(ClientCertificate(rejecting)).get("/", **of_server(pem)).status_code == 403


def test_a_token_is_bound_to_the_certificate_beside_it(
    app: App, pem: str, authority: Authority
) -> None:
    """RFC 8705 section 3: a token that was stolen is of no use without the private key."""
    secret = "a secret of the tests, thirty-two bytes"
    bearer = partial(
        Authenticator, algorithms=["HS256"], secret=secret, certificate_bound="required"
    )
    client = Client(AllOf(app, [ClientCertificate, bearer], primary=1))
    bound = {"cnf": {"x5t#S256": from_pem(pem).certificate.thumbprint}}
    fields = {"Authorization": f"Bearer {mint(secret, 'HS256', 'ann', **bound)}"}
    assert client.get("/", headers=fields, **of_server(pem)).status_code == 200
    assert (app.caller.subject, app.caller.scheme) == ("ann", "bearer")
    assert [each.scheme for each in app.seen[IDENTITIES]] == ["mtls", "bearer"]
    thief = authority.issue("thief", NAMES).read_text().partition("-----BEGIN PRIVATE")[0]
    assert client.get("/", headers=fields, **of_server(thief)).status_code == 401
    assert client.get("/", headers=fields).status_code == 401


def test_preflights_and_exempt_requests_pass(app: App) -> None:
    client = Client(ClientCertificate(app, exempt={"paths": ["/open"]}))
    assert client.get("/open").status_code == 200
    fields = {"Origin": "https://a.example", "Access-Control-Request-Method": "PUT"}
    assert client.options("/", headers=fields).status_code == 200
    assert (
        Client(ClientCertificate(app, preflights=True)).options("/", headers=fields).status_code
        == 401
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "x-cert"}, "source: "),
        ({"source": "header:"}, "source: "),
        ({"source": "header:a b"}, "source: "),
        ({"subject": "email"}, "subject: one of dn, cn"),
        ({"allow": "a"}, "allow: expected a list"),
        ({"revoked": "ab"}, "revoked: expected a list"),
        ({"revoked": ["ab"]}, "revoked: 'ab' is not a SHA-256 fingerprint"),
        ({"ca": "/nowhere/ca.pem"}, "ca: /nowhere/ca.pem cannot be read: No such file"),
        ({"ca": __file__}, "ca: .* it has no valid certificate"),
        ({"realm": '"'}, "realm: "),
    ],
)
def test_an_invalid_argument_is_named(options: dict[str, Any], message: str, app: App) -> None:
    with pytest.raises(ValueError, match=message):
        ClientCertificate(app, **options)


def test_many_certificates_are_accepted(app: App, authority: Authority) -> None:
    """The cache is bounded: each of many callers is still who its certificate says."""
    client = behind_proxy(app, source="xfcc", subject="cn")
    for number in (*range(1100), 0, 1099):
        element = f"Hash={number:064x};Subject=CN=caller-{number}"
        fields = {"X-Forwarded-Client-Cert": element}
        assert client.get("/", headers=fields, environ_base=PROXY).status_code == 200
        assert app.caller.subject == f"caller-{number}"
