"""The upstream request made from the client's, without a client or an instance."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.objects import kept
from wsgigate import Identity
from wsgigate.discovery import Instance
from wsgigate.http.fields import FieldRules
from wsgigate.http.problem import Refusal
from wsgigate.http.target import BadTarget, Target
from wsgigate.http.wsgi import CLAIMS, IDENTITY, PEER_TRUSTED, REQUEST_ID
from wsgigate.proxy.request import FieldCopier, Outgoing, RequestMaker
from wsgigate.testing.fakes import new_environ

INSTANCE = Instance("http://10.0.0.1:8000")


def made(
    path: str = "/x", environ: dict[str, Any] | None = None, method: str = "GET", **options: Any
) -> Outgoing:
    whole = {**new_environ(method), "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "a.test"}
    whole["REMOTE_ADDR"] = "192.0.2.1"
    whole.update(environ or {})
    return RequestMaker(**options).make(whole, Target(path, None, "a.test"), INSTANCE)


def fields(environ: dict[str, Any] | None = None, **options: Any) -> dict[str, str]:
    return dict(made(environ=environ, **options).headers)


def refused(status: int, *args: Any, **options: Any) -> None:
    with pytest.raises(Refusal) as caught:
        made(*args, **options)
    assert caught.value.problem.status == status


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "TRACK"])
def test_some_methods_are_never_forwarded(method: str) -> None:
    """F13, F14"""
    refused(405, method=method)


@pytest.mark.parametrize("method", ["", "G T", "G" * 21, "GÉT", "G\n"])
def test_an_invalid_or_long_method_is_rejected(method: str) -> None:
    """F15"""
    refused(400, method=method)


@pytest.mark.parametrize("version", ["HTTP/1.2", "HTTP/0.9", "HTTP/3", ""])
def test_an_unsupported_http_version_is_rejected(version: str) -> None:
    """B09"""
    refused(505, environ={"SERVER_PROTOCOL": version})


@pytest.mark.parametrize(
    ("method", "forwards", "sent"),
    [("OPTIONS", "3", "2"), ("OPTIONS", "1", "0"), ("GET", "3", "3"), ("GET", "x", "x")],
)
def test_only_options_has_max_forwards_decremented(method: str, forwards: str, sent: str) -> None:
    """F14"""
    request = made(method=method, environ={"HTTP_MAX_FORWARDS": forwards})
    assert request.headers["Max-Forwards"] == sent


def test_hop_by_hop_fields_are_removed() -> None:
    """C06: also a Content-Length among the fields, and obsolete settings."""
    gone = {
        "HTTP_HTTP2_SETTINGS": "x",
        "HTTP_EXPECT": "100-continue",
        "HTTP_CONTENT_LENGTH": "9",
        "HTTP_CONTENT_TYPE": "a/b",
        "HTTP_X_FORWARDED_NOVEL": "x",
        "HTTP_X_FORWARDED_FOR": "1.2.3.4",
    }
    told = fields(gone)
    assert {"Http2-Settings", "Expect", "Content-Length", "Content-Type"}.isdisjoint(told)
    assert "X-Forwarded-Novel" not in told
    assert told["X-Forwarded-For"] == "192.0.2.1"
    assert told["Host"] == "10.0.0.1:8000"
    assert list(told).count("Host") == 1


@pytest.mark.parametrize(
    ("method", "length", "told"),
    [
        ("POST", "003", "3"),
        ("GET", "3", "3"),
        ("GET", "0", "0"),
        ("POST", "", "0"),
        ("GET", "", None),
    ],
)
def test_the_gateway_sets_content_length(method: str, length: str, told: str | None) -> None:
    """A05, A22, A23"""
    request = made(method=method, environ={"CONTENT_LENGTH": length})
    assert request.headers.get("Content-Length") == told


def test_via_is_extended_and_a_loop_detected_by_the_whole_name() -> None:
    """C13"""
    assert fields({"HTTP_VIA": "1.0 other"})["Via"] == "1.0 other, 1.1 wsgigate"
    assert fields({"HTTP_VIA": "1.0 wsgigate-2"})["Via"] == "1.0 wsgigate-2, 1.1 wsgigate"
    refused(508, environ={"HTTP_VIA": "1.0 x, 1.1 wsgigate"})


@pytest.mark.parametrize(
    ("told", "claims", "options", "passes"),
    [
        ({"X-User": "sub"}, {"sub": "7"}, {}, False),
        ({"X-User": "sub"}, None, {}, True),
        ({}, {"sub": "7"}, {}, True),
        ({"X-User": "sub"}, {"sub": "7"}, {"forward_authorization": True}, True),
        ({}, None, {"forward_authorization": False}, False),
    ],
)
def test_authorization_is_forwarded_unless_identity_fields_are_set(
    told: dict[str, str], claims: Any, options: dict[str, Any], passes: bool
) -> None:
    """J34"""
    environ = {"HTTP_AUTHORIZATION": "Bearer x", **({CLAIMS: claims} if claims else {})}
    assert ("Authorization" in fields(environ, identity=told, **options)) == passes


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        (True, "true"),
        (False, "false"),
        (7, "7"),
        ("a b", "a b"),
        (["a", "b"], "a b"),
        (["a b", "c%20d"], "a%20b c%2520d"),
        ("100% a", "100% a"),
        ("Zoë €", "Zoë €".encode().decode("latin-1")),
        ([], ""),
        ([1], None),
        (["a", 1], None),
        (1.5, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_claim_that_is_no_field_value_is_omitted(claim: Any, told: str | None) -> None:
    """D04: nor does what the client said take its place."""
    environ = {CLAIMS: {"c": claim}, "HTTP_X_CLAIM": "forged"}
    assert fields(environ, identity={"X-Claim": "c"}).get("X-Claim") == told


CALLER = Identity(
    subject="ann",
    scheme="api-key",
    client="key-1",
    claims={"sub": "other", "org": {"roles": ["clerk"]}, "plan": "pro"},
    scopes=frozenset({"b", "a"}),
)


@pytest.mark.parametrize(
    ("named", "value"),
    [
        ("subject", "ann"),
        ("scheme", "api-key"),
        ("client", "key-1"),
        ("issuer", None),
        ("scopes", "a b"),
        ("sub", "other"),
        ("org.roles", "clerk"),
        ("org", None),
        ("claim:subject", None),
    ],
)
def test_an_identity_field_has_a_value_of_the_verified_caller(
    named: str, value: str | None
) -> None:
    """D04: where there is none, what the client sent does not take its place."""
    environ = {IDENTITY: CALLER, "HTTP_X_USER": "forged"}
    assert fields(environ, identity={"X-User": named}).get("X-User") == value


def test_the_subject_is_known_without_an_identity_if_only_claims_are_verified() -> None:
    found = fields({CLAIMS: {"sub": "7"}}, identity={"X-User": "subject", "X-Scopes": "scopes"})
    assert (found["X-User"], found["X-Scopes"]) == ("7", "")


@pytest.mark.parametrize("caller", [None, CALLER])
@pytest.mark.parametrize(
    "environ",
    [
        {"HTTP_REMOTE_USER": "forged"},
        {"HTTP_REMOTE_USER": "forged", "HTTP_CONNECTION": "Remote-User, Remote_User"},
        {"HTTP_REMOTE_USER": "forged", "REMOTE_USER": "forged"},
    ],
)
def test_a_client_forges_no_identity_field_with_or_without_a_caller(
    environ: dict[str, Any], caller: Identity | None
) -> None:
    """Security: fields that are only replaced where there is a value, or in one spelling."""
    environ = environ | ({} if caller is None else {IDENTITY: caller})
    found = fields(environ, identity={"Remote-User": "subject", "X-Plan": "nothing"})
    assert found.get("Remote-User") == (None if caller is None else "ann")
    assert "forged" not in found.values()


def test_an_identity_field_with_a_malformed_path_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"the identity field X-User: 'a\.\.b' is not the path"):
        RequestMaker(identity={"X-User": "a..b"})


@pytest.mark.parametrize(
    ("path", "options", "target"),
    [
        ("/", {"add_prefix": "/v1"}, "/v1/"),
        ("/x", {"add_prefix": "/v1"}, "/v1/x"),
        ("/v1", {"strip_prefix": "/v1", "add_prefix": "/w"}, "/w/"),
        ("/v1/x", {"strip_prefix": "/v1"}, "/x"),
        ("/v1x", {"strip_prefix": "/v1"}, "/v1x"),
        ("/a/b/x", {"strip_prefix": "/{one}/*"}, "/x"),
        ("/a", {"strip_prefix": "/{one}/*"}, "/a"),
    ],
)
def test_a_path_is_rewritten_in_whole_segments(
    path: str, options: dict[str, str], target: str
) -> None:
    """E26"""
    assert made(path, **options).target == target


@pytest.mark.parametrize("options", [{"strip_prefix": "/v1"}, {"add_prefix": "/w"}])
def test_a_rewritten_path_is_checked_again(options: dict[str, str]) -> None:
    """E27, CVE-2026-65600: whatever came to hold a path that was none before."""
    refused(400, "/v1//x", **options)
    with pytest.raises(BadTarget):
        made("/v1/../x", **options)


TOLD = {
    "HTTP_X_FORWARDED_FOR": "1.2.3.4",
    "HTTP_X_FORWARDED_PROTO": "https",
    "HTTP_X_FORWARDED_HOST": "shop.test",
    "HTTP_X_FORWARDED_PORT": "8443",
    "HTTP_X_FORWARDED_PREFIX": "/shop/",
    "HTTP_FORWARDED": "for=1.2.3.4",
}


def test_forwarding_fields_of_a_trusted_proxy_are_extended() -> None:
    """D09"""
    told = fields({**TOLD, PEER_TRUSTED: True}, strip_prefix="/x")
    assert told["X-Forwarded-For"] == "1.2.3.4, 192.0.2.1"
    assert told["X-Forwarded-Proto"] == "https"
    assert told["X-Forwarded-Host"] == "shop.test"
    assert told["X-Forwarded-Port"] == "8443"
    assert told["X-Forwarded-Prefix"] == "/shop/x"
    assert told["Forwarded"] == "for=1.2.3.4, for=192.0.2.1;host=a.test;proto=http"


def test_loops_are_detected_without_via() -> None:
    options: dict[str, Any] = {"loop_field": "cdn-loop", "via": "gate"}
    sent = fields({"HTTP_VIA": "1.1 front", "HTTP_CDN_LOOP": "cdn.test; x=1"}, **options)
    assert "Via" not in sent
    assert sent["Cdn-Loop"] == "cdn.test; x=1, gate"
    assert [name.lower() for name in sent].count("cdn-loop") == 1
    for value in ("gate", "cdn.test, gate", "gate; x=1, cdn.test"):
        refused(508, environ={"HTTP_CDN_LOOP": value}, **options)
        refused(508, environ={"HTTP_CDN_LOOP": value, "HTTP_CONNECTION": "cdn-loop"}, **options)
    assert "Cdn-Loop" in fields(
        {"HTTP_CDN_LOOP": "gates", "HTTP_CONNECTION": "cdn-loop"}, **options
    )
    with pytest.raises(ValueError, match="loop_field"):
        RequestMaker(loop_field="none")


@pytest.mark.parametrize(
    ("told", "host", "scheme", "port"),
    [
        # Apache's defaults: the host, and the scheme where it is told to
        ({"HOST": "shop.test", "PROTO": "https"}, "shop.test", "https", "443"),
        ({"HOST": "shop.test"}, "shop.test", "http", "80"),
        ({"HOST": "shop.test:8443", "PROTO": "https"}, "shop.test:8443", "https", "8443"),
        ({"HOST": "[2001:db8::1]", "PROTO": "https"}, "[2001:db8::1]", "https", "443"),
        ({"HOST": "shop.test", "PROTO": "https", "PORT": "8443"}, "shop.test", "https", "8443"),
        ({"HOST": "shop.test:8443", "PORT": "443"}, "shop.test:8443", "http", "8443"),
        # a proxy that keeps the Host
        ({"PROTO": "https"}, "a.test:3000", "https", "3000"),
        ({"PORT": "443", "PROTO": "https"}, "a.test:3000", "https", "3000"),
        ({}, "a.test:3000", "http", "3000"),
    ],
)
def test_forwarded_scheme_host_and_port_come_from_one_source(
    told: dict[str, str], host: str, scheme: str, port: str
) -> None:
    given = {f"HTTP_X_FORWARDED_{name}": value for name, value in told.items()}
    sent = fields({"HTTP_HOST": "a.test:3000", **given, PEER_TRUSTED: True})
    names = ("Host", "Proto", "Port")
    assert [sent[f"X-Forwarded-{name}"] for name in names] == [host, scheme, port]


def test_an_ipv4_mapped_client_address_is_forwarded_as_ipv4() -> None:
    told = fields({"REMOTE_ADDR": "::ffff:192.0.2.7"})
    assert told["X-Forwarded-For"] == "192.0.2.7"
    assert told["Forwarded"].startswith("for=192.0.2.7;")
    assert fields({"REMOTE_ADDR": "fe80::1%eth0"})["X-Forwarded-For"] == "fe80::1"


def test_forwarding_fields_of_untrusted_clients_are_replaced() -> None:
    """D08, D13"""
    told = fields(TOLD)
    assert told["X-Forwarded-For"] == "192.0.2.1"
    assert told["X-Forwarded-Proto"] == "http"
    assert told["X-Forwarded-Host"] == "a.test"
    assert told["X-Forwarded-Port"] == "80"
    assert "X-Forwarded-Prefix" not in told
    assert told["Forwarded"] == "for=192.0.2.1;host=a.test;proto=http"


@pytest.mark.parametrize(
    ("host", "scheme", "port"),
    [
        ("a.test", "http", "80"),
        ("a.test", "https", "443"),
        ("a.test:81", "https", "81"),
        ("[::1]", "http", "80"),
        ("[::1]:81", "http", "81"),
    ],
)
def test_x_forwarded_port_is_the_port_of_the_client_request(
    host: str, scheme: str, port: str
) -> None:
    told = fields({"HTTP_HOST": host, "wsgi.url_scheme": scheme})
    assert told["X-Forwarded-Port"] == port


def test_the_mount_path_is_forwarded_percent_encoded() -> None:
    """E34"""
    assert fields({"SCRIPT_NAME": "/a b\xe9/"})["X-Forwarded-Prefix"] == "/a%20b%E9"


def test_fields_named_by_connection_are_removed_except_the_request_id() -> None:
    named = {"HTTP_CONNECTION": "x-trace, x-color", "HTTP_X_TRACE": "r1", "HTTP_X_COLOR": "red"}
    told = fields({**named, REQUEST_ID: "r1"})
    assert told["X-Trace"] == "r1"
    assert "X-Color" not in told
    assert not {"X-Trace", "X-Color"} & fields(named).keys()


@pytest.mark.parametrize("key", ["HTTP_X", "CONTENT_TYPE"])
@pytest.mark.parametrize("value", ["a\x00b", "a\x0bb", "a\nb", "a\x7fb"])
def test_a_control_character_in_a_field_is_rejected(key: str, value: str) -> None:
    refused(400, environ={key: value})


def test_the_number_of_cached_request_shapes_is_bounded() -> None:
    copier = FieldCopier()
    for number in range(2000):
        copied = copier.copied({**new_environ(), f"HTTP_X_{number}": "y"})
        assert copied[f"X-{number}"] == "y"
    names = [text for text in kept(copier) if isinstance(text, str) and "HTTP_X_" in text]
    assert 0 < len(names) <= 512
    assert copier.copied({"HTTP_" + "Y" * 10_000: "z"}) == {"Y" + "y" * 9_999: "z"}
    assert max(len(text) for text in kept(copier) if isinstance(text, str)) < 100


def test_requests_of_one_shape_do_not_share_values() -> None:
    copier = FieldCopier()
    for value in ("one", "two"):
        assert copier.copied({"HTTP_X_A": value, "wsgi.url_scheme": "x"}) == {"X-A": value}
    assert copier.copied({"wsgi.url_scheme": "x", "HTTP_X_A": "three"}) == {"X-A": "three"}


def test_a_cached_shape_contains_no_values() -> None:
    """What is remembered of one client's request is nothing of its own."""
    maker = RequestMaker(identity={"X-User": "sub"})
    told = []
    for name in "ab":
        environ = {**new_environ(), "HTTP_HOST": f"{name}.test", "HTTP_COOKIE": name}
        environ |= {"HTTP_X_USER": "forged", "REMOTE_ADDR": f"::{name}", CLAIMS: {"sub": name}}
        headers = dict(maker.make(environ, Target("/", None, "a"), INSTANCE).headers)
        assert (headers["Cookie"], headers["X-User"]) == (name, name)
        assert (headers["X-Forwarded-For"], headers["X-Forwarded-Host"]) == (
            f"::{name}",
            f"{name}.test",
        )
        told.append((headers, {text for text in kept(maker) if isinstance(text, str)}))
    (first, texts), (second, later_texts) = told
    assert first.keys() == second.keys()
    assert texts == later_texts
    assert texts.isdisjoint({*"ab", "a.test", "b.test", "::a", "::b", "forged"})


def test_field_changes_are_applied_last_and_join_fields_of_one_name() -> None:
    rules = FieldRules(add={"x-color": "blue"}, set={"Via": "nobody"})
    told = fields({"HTTP_X_COLOR": "red"}, fields=rules)
    assert (told["X-Color"], told["Via"]) == ("red, blue", "nobody")
