"""Which tokens an authenticator accepts: their form, signature, type and claims."""

from __future__ import annotations

import hashlib
import hmac
import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.support.tokens import GOOD, INVALID, NOW, SECRET, Gate, claims, encoded, signed
from wsgigate.middleware.authenticator import Authenticator


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", None, 5, ["HS256"], {"a": 1}])
def test_j01_a_token_without_a_signature_is_rejected(name):
    gate = Gate()
    body = f"{encoded(json.dumps({'alg': name}).encode())}.{encoded(json.dumps(GOOD).encode())}"
    assert gate.bearer(f"{body}.") == INVALID
    assert gate.bearer(f"{body}.AAAA") == INVALID
    assert gate.bearer(signed(GOOD, {"alg": name})) == INVALID
    assert gate.bearer(signed(GOOD, "{}")) == INVALID


@pytest.fixture(scope="module")
def pair():
    private = rsa.generate_private_key(65537, 2048)
    public = private.public_key()
    return {
        "private": private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "public": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "der": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "n": public.public_numbers().n.to_bytes(256, "big"),
    }


@pytest.mark.parametrize("form", ["public", "der", "n"])
@pytest.mark.parametrize("name", ["HS256", "HS384", "HS512", "RS256"])
def test_j02_a_public_key_is_no_secret(pair, form, name):
    gate = Gate(algorithms=["RS256"], public_key=pair["public"])
    body = f"{encoded(json.dumps({'alg': name}).encode())}.{encoded(json.dumps(GOOD).encode())}"
    digest = {"HS384": "sha384", "HS512": "sha512"}.get(name, "sha256")
    forged = encoded(hmac.new(pair[form], body.encode(), digest).digest())
    assert gate.bearer(f"{body}.{forged}") == INVALID
    assert gate.bearer(jwt.encode(GOOD, pair["private"], "RS256")) == (200, "")


def test_j02_the_algorithm_is_one_of_those_that_were_named(pair):
    gate = Gate(algorithms=["RS256"], public_key=pair["public"])
    assert gate.bearer(jwt.encode(GOOD, pair["private"], "RS512")) == INVALID
    assert gate.bearer(jwt.encode(GOOD, pair["private"], "PS256")) == INVALID
    assert Gate().bearer(signed(GOOD, '{"alg":"HS512"}', digest=hashlib.sha512)) == INVALID


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"algorithms": ["HS256", "RS256"]}, r"HS\* and others cannot be mixed"),  # J03
        ({"algorithms": ["none"]}, '"none" would accept every token'),
        ({"secret": "short"}, "secret: 5 bytes; HS256 needs at least 32"),  # J21
        ({"secret": ""}, "secret: empty"),  # J33
        ({"secret": None}, "secret: required for these algorithms"),
        ({"invalid_token_status": 400}, "invalid_token_status is 401 or 403, not 400"),
        ({"leeway": -1}, "leeway: seconds, 0 or more"),
        ({"leeway": float("nan")}, "leeway: seconds, 0 or more"),
        ({"leeway": True}, "leeway: seconds"),
        ({"max_lifetime": 0}, "max_lifetime: seconds, more than 0"),
        ({"issuer": ""}, "issuer: expected a text"),
        ({"issuer": ["a"]}, "issuer: expected a text"),
        ({"audience": []}, "audience: an empty list would reject"),
        ({"audience": [None]}, "audience: expected a text"),
        ({"audience": ""}, "audience: expected a text"),
        ({"typ": ""}, "typ: expected a text"),
        ({"scopes": "read"}, "scopes: expected a list"),
        ({"scopes": ["a b"]}, "scopes: 'a b' is not a scope name"),
        ({"scopes": ["a"], "required": False}, "scopes: cannot be required"),
        ({"required_claims": "sub"}, "required_claims: a list of names, or a table"),
        ({"required_claims": {"type": []}}, "required_claims: type: an empty list"),
        ({"required_claims": {"type": {}}}, "required_claims: type: a text, a number, true"),
        ({"required_claims": {"type": None}}, "required_claims: type: a text, a number, true"),
        ({"required_claims": {"a": {"b": "c"}}}, 'required_claims: a: a claim inside .* "a.b"'),
        ({"required_claims": ["a..b"]}, "required_claims: 'a..b' is not the path of a claim"),
        ({"required_claims": [1]}, "required_claims: the name of a claim is a text, not 1"),
        ({"also_accept": "refresh"}, 'also_accept: a list of "action", "event"'),
        ({"also_accept": ["access"]}, 'also_accept: a list of "action", "event"'),
        ({"realm": 'a"b'}, "realm: printable ASCII"),
        ({"realm": ""}, "realm: printable ASCII"),
        ({"realm": "a\r\n"}, "realm: printable ASCII"),
        ({"cache_size": -1}, "cache_size: a whole number of tokens"),
        ({"cache_size": 1.5}, "cache_size: a whole number of tokens"),
    ],
)
def test_j03_j21_j33_wrong_settings_raise_in_the_constructor(options, text):
    with pytest.raises(ValueError, match=text):
        Authenticator(None, **{"algorithms": ["HS256"], "secret": SECRET, **options})


@pytest.mark.parametrize("kid", ["../../etc/passwd", "' OR 1", "http://evil/keys"])
def test_j04_a_kid_is_never_looked_up(kid):
    gate = Gate()
    header = {"alg": "HS256", "kid": kid}
    assert gate.bearer(signed(GOOD, header, secret="e" * 32)) == INVALID
    assert gate.bearer(signed(GOOD, header)) == (200, "")


@pytest.mark.parametrize("kid", ["k" * 4000, "a\r\nb", "a\x00", ["a"], {"a": 1}, None, 5])
def test_j04_a_kid_that_is_no_short_text_is_refused(kid):
    gate = Gate()
    assert gate.bearer(signed(GOOD, {"alg": "HS256", "kid": kid})) == INVALID
    assert gate.reason.isascii()
    assert gate.reason.isprintable()
    assert len(gate.reason) < 200


def test_j07_keys_in_the_header_of_a_token_are_ignored(pair):
    evil = {
        "jku": "https://evil/keys",
        "x5u": "https://evil/chain",
        "x5c": ["MIIB"],
        "jwk": {"kty": "oct", "k": encoded(b"e" * 32)},
    }
    gate = Gate()
    assert gate.bearer(signed(GOOD, {"alg": "HS256", **evil}, secret="e" * 32)) == INVALID
    assert gate.bearer(signed(GOOD, {"alg": "HS256", **evil})) == (200, "")


@pytest.mark.parametrize(
    "extra",
    [
        {"crit": ["exp"], "exp": 1},
        {"crit": ["b64"], "b64": False},
        {"crit": ["b64"], "b64": True},
        {"b64": False},
        {"crit": []},
        {"crit": None},
    ],
)
def test_j08_a_header_with_unsupported_members_is_rejected(extra):
    """RFC 7515 section 4.1.11, RFC 7797."""
    assert Gate().bearer(signed(GOOD, {"alg": "HS256", **extra})) == INVALID


@pytest.mark.parametrize(
    "exp",
    [
        '"1700000060"',
        "true",
        "null",
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "9" * 5000,
        "9" * 400,
        "1e30",
        "-1",
        "0",
        "[1700000060]",
        "{}",
    ],
)
def test_j09_exp_is_a_moment_in_the_future(exp):
    gate = Gate()
    assert gate.bearer(signed(f'{{"sub":"a","exp":{exp}}}')) == INVALID
    for name in ("nbf", "iat"):
        if exp not in ("0", "-1"):
            payload = f'{{"sub":"a","exp":{NOW + 60},"{name}":{exp}}}'
            assert gate.bearer(signed(payload)) == INVALID


def test_j09_a_token_without_an_end_is_refused():
    gate = Gate()
    assert gate.bearer(signed(claims(exp=...))) == INVALID
    assert gate.reason == "bad token: no exp"
    assert gate.bearer(signed(claims(exp=NOW + 0.5))) == (200, "")


@pytest.mark.parametrize(
    ("offset", "leeway", "status"),
    [
        (0, 30, 200),  # exp is right now
        (-29.9, 30, 200),
        (-30, 30, 401),  # "on or after" its end, leeway included
        (-31, 30, 401),
        (0, 0, 401),
        (0.1, 0, 200),
    ],
)
def test_j10_a_token_is_good_until_right_before_its_end_and_the_leeway(offset, leeway, status):
    """RFC 7519 section 4.1.4; the same moment ends a token that is remembered."""
    gate = Gate(leeway=leeway)
    assert gate.bearer(signed(claims(exp=NOW + offset)))[0] == status
    gate = Gate(leeway=leeway)
    gate.clock.now = NOW - 1000
    assert gate.bearer(signed(claims(exp=NOW + offset)))[0] == 200
    gate.clock.now = NOW
    assert gate.bearer(signed(claims(exp=NOW + offset)))[0] == status


@pytest.mark.parametrize("name", ["nbf", "iat"])
@pytest.mark.parametrize(("offset", "status"), [(-60, 200), (0, 200), (30, 200), (30.5, 401)])
def test_j11_a_token_from_the_future_is_refused(name, offset, status):
    """RFC 7519 sections 4.1.5, 4.1.6."""
    assert Gate().bearer(signed(claims(exp=NOW + 90, **{name: NOW + offset})))[0] == status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"iat": NOW, "exp": NOW + 3600}, 200),
        ({"iat": NOW, "exp": NOW + 3601}, 401),
        ({"iat": NOW - 3000, "exp": NOW + 601}, 401),
        ({"iat": NOW, "exp": NOW + 10 * 365 * 86400}, 401),
        ({"exp": NOW + 60}, 401),
    ],
)
def test_j12_a_longest_lifetime_needs_iat(changes, status):
    assert Gate(max_lifetime=3600).bearer(signed(claims(**changes)))[0] == status


@pytest.mark.parametrize(
    ("aud", "status"),
    [
        ("orders", 200),
        (["billing", "orders"], 200),
        ("shop", 200),
        ("Orders", 401),
        ("order", 401),
        ("orders ", 401),
        (["billing"], 401),
        (["orders", 5], 401),
        (5, 401),
        (None, 401),
        ([], 401),
        ({"orders": 1}, 401),
        ([["orders"]], 401),
        (..., 401),
    ],
)
def test_j13_a_token_is_for_this_gateway(aud, status):
    gate = Gate(audience=["orders", "shop"])
    assert gate.bearer(signed(claims(aud=aud)))[0] == status
    gate = Gate(audience="orders")
    assert gate.bearer(signed(claims(aud=aud)))[0] == (401 if aud == "shop" else status)


def test_j13_a_token_with_an_audience_is_rejected_if_none_is_configured():
    """RFC 7519 section 4.1.3."""
    assert Gate().bearer(signed(claims(aud="billing"))) == INVALID


@pytest.mark.parametrize(
    ("iss", "status"),
    [
        ("https://id.example", 200),
        ("https://id.example/", 401),
        ("https://id.exampl", 401),
        ("https://id.example.evil", 401),
        (["https://id.example"], 401),
        ("", 401),
        (None, 401),
        (..., 401),
    ],
)
def test_j14_the_issuer_is_compared_to_the_letter(iss, status):
    assert Gate(issuer="https://id.example").bearer(signed(claims(iss=iss)))[0] == status


@pytest.mark.parametrize(
    "payload",
    [
        '{"sub":"user","sub":"admin","exp":1700000060}',
        '{"sub":"user","\\u0073ub":"admin","exp":1700000060}',
        '{"sub":"user","exp":1700000060,"exp":1800000000}',
        '{"sub":"user","exp":1700000060,"a":{"b":1,"b":2}}',
    ],
)
def test_j15_a_claim_is_named_once(payload):
    assert Gate().bearer(signed(payload)) == INVALID


def test_j16_a_header_member_is_named_once():
    gate = Gate()
    assert gate.bearer(signed(GOOD, '{"alg":"none","alg":"HS256"}')) == INVALID
    assert gate.bearer(signed(GOOD, '{"alg":"HS256","alg":"HS256"}')) == INVALID


def variants():
    token = signed(GOOD)
    header, payload, signature = token.split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet[alphabet.index(signature[-1]) ^ 1]
    return {
        "padded": f"{token}=",
        "padded header": f"{header}==.{payload}.{signature}",
        "other alphabet": token.replace("-", "+").replace("_", "/") + "+",
        "space": f"{header}. {payload}.{signature}",
        "newline": f"{token}\n",
        "newline inside": f"{header}.{payload}\n.{signature}",
        "accent": f"{header}é.{payload}.{signature}",
        "wide": f"{token}\uff21",
        "surrogate": f"{token}\udc80",
        "nul": f"{token}\x00",
        "four parts": f"{token}.{signature}",
        "five parts": f"{token}.{signature}.{signature}",
        "two parts": f"{header}.{payload}",
        "one part": header,
        "no header": f".{payload}.{signature}",
        "no payload": f"{header}..{signature}",
        "no signature": f"{header}.{payload}.",
        "JSON": json.dumps({"payload": payload, "protected": header, "signature": signature}),
        "bits left over": token[:-1] + last,
        "one character more": f"{token}A",
        "quoted": f'"{token}"',
    }


@pytest.mark.parametrize("name", variants())
def test_j17_a_token_is_written_in_one_way(name):
    gate = Gate()
    gate.bearer(signed(GOOD))
    assert gate.bearer(variants()[name]) == INVALID


@pytest.mark.parametrize(
    "token",
    [
        "a" * 8193,
        "a." * 2_500_000,
        signed(claims(x="x" * 8192)),
        signed("[" * 5000),
        signed('{"a":' * 1100),
        signed(GOOD, "[" * 5900),
        signed(GOOD, '{"a":' * 1100),
    ],
    ids=["8 KB", "5 MB", "large", "deep", "deep claims", "deep header", "deep header object"],
)
def test_j18_a_token_too_long_or_too_deep_costs_nothing(token):
    assert Gate().bearer(token) == INVALID


@pytest.mark.parametrize(("levels", "status"), [(64, 200), (65, 401), (500, 401)])
def test_j18_claims_are_at_most_64_levels_deep(levels, status):
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        inner = opening * levels + ("1" if opening != "[" else "") + closing * levels
        payload = f'{{"exp": {NOW + 60}, "x": {inner}}}'
        gate = Gate()
        assert gate.bearer(signed(payload))[0] == status
        if status == 200:
            assert gate.claims["x"] == json.loads(inner)


def test_j18_a_token_of_8_kilobytes_is_read():
    size = 8192 - len(signed(claims(x="")))
    token = signed(claims(x="x" * (size * 3 // 4)))
    assert 8180 < len(token) <= 8192
    assert Gate().bearer(token) == (200, "")


@pytest.mark.parametrize(
    "payload",
    ["[]", '"a"', "5", "null", "", " ", "{", "{}x", b"\xff{}", b"\xef\xbb\xbf{}", "{'a':1}"],
)
def test_j19_a_payload_is_a_json_object(payload):
    assert Gate().bearer(signed(payload)) == INVALID


@pytest.mark.parametrize(
    "sub", [5, None, [], {}, True, "", "a\r\nb", "a\x00", "a\x7f", "a\x85", "a\u2028", "\ud800"]
)
def test_j19_a_subject_is_a_text_that_fits_a_line(sub):
    gate = Gate()
    assert gate.bearer(signed(claims(sub=sub))) == INVALID
    assert gate.reason.isprintable()


@pytest.mark.parametrize("sub", ["a", "a b", "é", "用户", "auth0|1234", ...])
def test_j19_a_subject_may_be_any_other_text_or_absent(sub):
    assert Gate().bearer(signed(claims(sub=sub))) == (200, "")


@pytest.mark.parametrize(
    ("typ", "status"),
    [
        ("at+jwt", 200),
        ("AT+JWT", 200),
        ("application/at+jwt", 200),
        ("Application/AT+jwt", 200),
        ("JWT", 401),
        ("id+jwt", 401),
        ("text/at+jwt", 401),
        (None, 401),
        (5, 401),
        (..., 401),
    ],
)
def test_j20_a_token_of_another_type_is_no_access_token(typ, status):
    """RFC 9068 section 2.1, RFC 7515 section 4.1.9."""
    header = {"alg": "HS256"} if typ is ... else {"alg": "HS256", "typ": typ}
    for wanted in ("at+jwt", "application/AT+JWT"):
        assert Gate(typ=wanted).bearer(signed(GOOD, header))[0] == status
    assert Gate().bearer(signed(GOOD, header))[0] == (401 if typ == "id+jwt" else 200)


REFRESH = [
    # what the libraries sign with the same secret as their access tokens
    ({"type": "refresh", "fresh": False, "jti": "x", "csrf": "y"}, {}),  # flask-jwt-extended
    ({"token_type": "refresh", "jti": "x", "user_id": "1", "sub": ...}, {}),  # simplejwt
    ({"typ": "Refresh", "azp": "shop"}, {}),  # Keycloak
    ({}, {"typ": "refresh+jwt"}),
]


@pytest.mark.parametrize(("changes", "typ"), REFRESH)
def test_a_refresh_token_is_no_access_token(changes, typ):
    token = signed(claims(**changes), {"alg": "HS256", "typ": "JWT", **typ})
    gate = Gate()
    assert [gate.bearer(token) for _ in range(2)] == [INVALID, INVALID]
    assert gate.reason.startswith("bad token: no access token: ")
    assert Gate(invalid_token_status=403).bearer(token)[0] == 403
    assert Gate(required=False).bearer(token) == INVALID
    assert Gate(also_accept=["refresh"]).bearer(token) == (200, "")


def test_the_route_that_refreshes_tokens_accepts_refresh_tokens():
    gate = Gate(required_claims={"type": "refresh"})
    assert gate.bearer(signed(claims(type="refresh"))) == (200, "")
    assert gate.bearer(signed(claims(type="access"))) == INVALID
    assert gate.bearer(signed(GOOD)) == INVALID


def test_claims_are_required_with_their_values():
    gate = Gate(required_claims={"token_type": ["access", "sliding"], "tenant": "a"})
    assert gate.bearer(signed(claims(token_type="sliding", tenant="a"))) == (200, "")
    assert gate.bearer(signed(claims(token_type="sliding", tenant="b"))) == INVALID
    assert gate.reason == "bad token: tenant is 'b'"
    assert gate.bearer(signed(claims(tenant="a"))) == INVALID
    assert gate.reason == "bad token: no token_type"


def test_j26_old_and_new_secret_are_good_during_a_rotation():
    old, new = signed(GOOD, secret="o" * 32), signed(GOOD, secret="n" * 32)
    gate = Gate(secret=["o" * 32, "n" * 32])
    assert (gate.bearer(old)[0], gate.bearer(new)[0]) == (200, 200)
    gate = Gate(secret="n" * 32)
    assert (gate.bearer(old)[0], gate.bearer(new)[0]) == (401, 200)


def test_j28_a_clock_that_steps_breaks_nothing():
    gate = Gate()
    token = signed(GOOD)
    assert gate.bearer(token)[0] == 200
    for step, status in ((-3600, 200), (3600, 401), (0, 200)):
        gate.clock.now = NOW + step
        assert gate.bearer(token)[0] == status
