"""Fetching keys from real endpoints that fail, lie, grow, redirect and hang."""

from __future__ import annotations

import json
import ssl
import threading
import time
from email.utils import formatdate

import pytest

from tests.support.certificates import Authority, make_certificate
from tests.support.issuer import FaultyIssuer, signing_key
from tests.support.ports import refused_port
from wsgigate.auth.jwks_fetch import FetchFailed, check_url, fetch
from wsgigate.client.exchange import Stopped
from wsgigate.testing.backend import Backend, reply

KEY = signing_key("RS256")
SET = json.dumps({"keys": [KEY.jwk()]}).encode()


def failure(url, *, discovers=False, **options):
    with pytest.raises(FetchFailed) as found:
        fetch(url, discovers=discovers, **options)
    return str(found.value)


def test_a_set_is_fetched_from_its_url():
    with Backend(reply(SET)) as backend:
        answer = fetch(f"{backend.url}/keys?tenant=7", discovers=False)
    assert [key["kid"] for key in answer.keys] == [KEY.kid]
    assert backend.requests[0].target == "/keys?tenant=7"
    assert backend.requests[0].value("Accept") == "application/jwk-set+json, application/json"
    assert backend.requests[0].value("Accept-Encoding") == "identity"


def test_an_issuer_is_discovered():
    with FaultyIssuer() as issuer:
        answer = fetch(issuer.url, discovers=True)
    assert [key["kid"] for key in answer.keys] == [issuer.keys[0].kid]
    assert issuer.requests == [
        "/realms/shop/.well-known/openid-configuration",
        "/realms/shop/protocol/openid-connect/certs",
    ]


@pytest.mark.parametrize("slash", ["", "/"])
def test_an_issuer_with_a_slash_at_its_end_is_another_one(slash):
    """Auth0's issuers end with one, and the discovery document has it."""
    with Backend(reply(b"{}")) as backend:
        issuer = f"{backend.url}{slash}"
        document = {"issuer": issuer, "jwks_uri": f"{backend.url}/keys"}
        backend.answers = [reply(json.dumps(document).encode()), reply(SET)]
        assert len(fetch(issuer, discovers=True).keys) == 1
        assert backend.requests[0].target == "/.well-known/openid-configuration"


def test_the_metadata_of_an_authorization_server_is_found_where_rfc_8414_has_it():
    with Backend(reply(b"", status="404 Not Found")) as backend:
        issuer = f"{backend.url}/tenant"
        document = {"issuer": issuer, "jwks_uri": f"{backend.url}/keys"}
        backend.answers += [reply(json.dumps(document).encode()), reply(SET)]
        assert len(fetch(issuer, discovers=True).keys) == 1
        assert [request.target for request in backend.requests] == [
            "/tenant/.well-known/openid-configuration",
            "/.well-known/oauth-authorization-server/tenant",
            "/keys",
        ]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"issuer": "https://evil.example"}, "of the issuer 'https://evil.example', not 'http://"),
        ({"issuer": None}, "its discovery document is that of the issuer None"),
        ({"jwks_uri": None}, "its discovery document has no jwks_uri"),
        ({"jwks_uri": "http://id.example.com/keys"}, "must begin with https://"),
        ({"jwks_uri": "file:///etc/passwd"}, "jwks_uri: expected a URL"),
        ({"jwks_uri": "https://user@id.example.com/"}, "jwks_uri: expected a URL"),
    ],
)
def test_a_discovery_document_that_lies_is_not_followed(document, why):
    with FaultyIssuer() as issuer:
        issuer.discovery = document
        assert why in failure(issuer.url, discovers=True)
        assert issuer.fetches == 0


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("error", "it answered 500"),
        ("redirect", "it answered 302: redirects are not followed"),
        ("html", "its answer is no set of keys: a JWK set that is not strict JSON"),
        ("empty", "its set has no key that verifies signatures"),
        ("enc", "its set has no key that verifies signatures"),
        ("huge", "its answer is larger than 262144 bytes"),
        ("close", "the connection was closed"),
    ],
)
def test_an_endpoint_that_fails_is_reported_without_its_name(mode, why):
    with FaultyIssuer() as issuer:
        issuer.mode = mode
        said = failure(issuer.jwks_url)
        assert why in said
        assert "127.0.0.1" not in said
        assert "/elsewhere" not in issuer.requests


def test_an_endpoint_that_hangs_is_left_when_the_thread_is_stopped():
    with FaultyIssuer() as issuer:
        issuer.mode = "hang"
        stopping = threading.Event()
        stopping.set()
        with pytest.raises(Stopped):
            fetch(issuer.jwks_url, discovers=False, stopping=stopping)


def test_a_port_that_nothing_listens_on_is_reported():
    with refused_port() as port:
        assert failure(f"http://127.0.0.1:{port}") == "the connection was refused"


def test_weak_and_private_keys_of_a_set_are_left_out_and_reported():
    weak, private = signing_key("RS256-1024").jwk(), KEY.jwk(d="AQAB")
    body = json.dumps({"keys": [weak, private, KEY.jwk()]}).encode()
    with Backend(reply(body)) as backend:
        answer = fetch(backend.url, discovers=False)
        assert [key["kid"] for key in answer.keys] == [KEY.kid]
        assert answer.left_out[0] == "keys[0]: RSA of 1024 bits; at least 2048 are required"
        assert answer.left_out[1].startswith("keys[1]: a private key; ")
        backend.answers = [reply(json.dumps({"keys": [weak]}).encode())]
        assert "signatures: keys[0]: RSA of 1024 bits" in failure(backend.url)


def test_a_secret_that_an_issuer_publishes_is_no_key():
    """Security J02: everyone knows it."""
    secret = {"kty": "oct", "k": "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY", "kid": "s"}
    with Backend(reply(json.dumps({"keys": [secret]}).encode())) as backend:
        assert failure(backend.url) == "its set has no key that verifies signatures"


@pytest.mark.parametrize(
    ("fields", "made", "max_age"),
    [
        ({}, None, None),
        ({"Date": 0}, 0, None),
        ({"Date": 0, "Age": "30"}, -30, None),
        ({"Date": 0, "Age": "-30"}, 0, None),
        ({"Date": 86_400}, 0, None),  # in the future: it would make all later answers old
        ({"Date": "yesterday"}, None, None),
        ({"Cache-Control": "public, max-age=300"}, None, 300),
        ({"Cache-Control": 'max-age="7", public'}, None, 7),
        ({"Cache-Control": "s-max-age=300"}, None, None),
        ({"Cache-Control": "max-age=-1"}, None, None),
        ({"Cache-Control": "no-cache"}, None, None),
    ],
)
def test_the_age_of_an_answer_is_that_of_its_fields(fields, made, max_age):
    now = float(int(time.time()))
    if isinstance(fields.get("Date"), int):
        fields = {**fields, "Date": formatdate(now + fields["Date"], usegmt=True)}
    with Backend(reply(SET, fields=fields.items())) as backend:
        answer = fetch(backend.url, discovers=False, now=lambda: now)
    assert answer.made == (None if made is None else now + made)
    assert answer.max_age == max_age


def test_the_certificate_of_the_endpoint_is_verified(tmp_path):
    own, other = make_certificate(tmp_path), Authority(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    with Backend(reply(SET), tls=lambda sock: context.wrap_socket(sock, server_side=True)) as it:
        assert len(fetch(it.url, discovers=False, ca=str(own)).keys) == 1
        for ca in (None, str(other.path)):
            assert failure(it.url, ca=ca) == "its certificate cannot be verified"


@pytest.mark.parametrize(
    "url",
    [
        "https://169.254.169.254/latest/meta-data",
        "https://[fd00:ec2::254]/",
        "https://0.0.0.0/keys",
        "https://[::ffff:169.254.169.254]/",
        "https://224.0.0.1/",
    ],
)
def test_addresses_that_no_instance_may_have_are_not_connected_to(url):
    assert "not connected: an issuer cannot be at" in failure(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://id.example.com/keys",
        "https://id.example.com:8443/keys?p=1",
        "https://[2001:db8::1]/",
        "http://localhost:8080/realms/shop",
        "http://127.0.0.9/keys",
        "http://[::1]:8080/keys",
        "HTTPS://id.example.com",
    ],
)
def test_keys_may_be_fetched_from(url):
    check_url(url, "jwks")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://id.example.com/keys", "must begin with https://"),
        ("http://10.0.0.4/keys", "must begin with https://"),
        ("http://localhost.example.com/", "must begin with https://"),
        ("ftp://id.example.com/keys", "must begin with https://"),
        ("https://", "expected a URL such as"),
        ("https://user:secret@id.example.com/", "without a user"),
        ("https://user:secret@id.example.com:99999/", "is not a URL"),
        ("https://user:secret@secret@id.example.com/#a", "without a user"),
        ("https://user:secret/secret?secret@id.example.com/", "is not a URL"),
        ("http://id.example.com/keys?token=secret", "must begin with https://"),
        ("https://id.example.com/#keys", "expected a URL such as"),
        ("https://id.example.com/a b", "expected a URL such as"),
        ("https://id.example.com/\r\nX: y", "expected a URL such as"),
        ("https://id.example.com:99999/", "is not a URL"),
        ("https://[::1/", "is not a URL"),
    ],
)
def test_keys_may_not_be_fetched_from(url, why):
    with pytest.raises(ValueError, match=r"^jwks: ") as found:
        check_url(url, "jwks")
    assert why in str(found.value)
    assert "secret" not in str(found.value)
