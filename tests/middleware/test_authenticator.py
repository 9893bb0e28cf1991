"""Who the caller is: a good token and nothing else, and one answer to every flaw."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import flask
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from django.http import JsonResponse
from werkzeug.test import Client

from wsgigate.auth.jwt import mint
from wsgigate.http.problem import Problem
from wsgigate.http.wsgi import CLAIMS, REASON
from wsgigate.middleware.authenticator import Authenticator, TokenCache

SECRET = "0123456789abcdef0123456789abcdef"
NOW = 1_700_000_000.0
GOOD = {"sub": "user-1", "exp": NOW + 60}
INVALID = (401, "Invalid or expired token!")
MISSING = (401, "Access token required!")


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(payload, header='{"alg":"HS256","typ":"JWT"}', secret=SECRET, digest=hashlib.sha256):
    """Return a token over these very texts, signed well, whatever they say."""
    payload = json.dumps(payload) if isinstance(payload, dict) else payload
    header = json.dumps(header) if isinstance(header, dict) else header
    body = ".".join(encoded(p.encode() if isinstance(p, str) else p) for p in (header, payload))
    return f"{body}.{encoded(hmac.new(secret.encode(), body.encode(), digest).digest())}"


def claims(**changes):
    return {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}


class Gate:
    """An authenticator around an app that notes what it is asked."""

    def __init__(self, **options):
        self.seen = []
        options.setdefault("algorithms", ["HS256"])
        if not {"secret", "public_key"} & options.keys():
            options["secret"] = SECRET
        self.clock = options.setdefault("clock", Clock())
        self.stack = Authenticator(self.app, **options)

    def app(self, environ, start_response):
        self.seen.append(environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    def ask(self, authorization=None, **environ):
        """Return status, detail, challenge and reason of the answer."""
        if authorization is not None:
            environ["HTTP_AUTHORIZATION"] = authorization
        setup_testing_defaults(environ)
        answer = []
        body = b"".join(self.stack(environ, lambda *args: answer.extend(args)))
        fields = dict(answer[1])
        self.reason = environ.get(REASON)
        self.challenge = fields.get("WWW-Authenticate")
        self.body = body
        ok = answer[0] == "200 OK"
        return int(answer[0][:3]), "" if ok or not body else json.loads(body)["detail"]

    def bearer(self, token, **environ):
        return self.ask(f"Bearer {token}", **environ)

    @property
    def claims(self):
        return self.seen[-1][CLAIMS]


def test_a_good_token_brings_its_claims_along():
    gate = Gate()
    assert gate.bearer(signed(claims(role="admin"))) == (200, "")
    assert gate.claims == {**GOOD, "role": "admin"}
    assert gate.reason is None


def test_without_a_token_the_answer_asks_for_one():
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


def test_claims_that_were_there_before_are_not_believed():
    gate = Gate(required=False)
    gate.ask(**{CLAIMS: {"sub": "admin"}})
    assert CLAIMS not in gate.seen[-1]
    environ = {CLAIMS: {"sub": "admin"}}
    setup_testing_defaults(environ)
    Gate().stack(environ, lambda *args: None)
    assert CLAIMS not in environ


def test_without_required_no_token_passes_but_a_bad_one_does_not():
    gate = Gate(required=False)
    assert gate.ask() == (200, "")
    assert gate.ask("Basic dXNlcjpwYXNz") == (200, "")
    assert gate.bearer("bad") == INVALID
    assert gate.ask("Bearer") == INVALID
    assert gate.ask("Basic x,Bearer y") == INVALID
    assert gate.bearer(signed(GOOD)) == (200, "")
    assert gate.claims == GOOD


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


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", None, 5, ["HS256"], {"a": 1}])
def test_j01_no_token_says_itself_that_it_needs_no_signature(name):
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
def test_j03_j21_j33_wrong_settings_are_told_at_once(options, text):
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


def test_j07_keys_that_a_token_brings_along_are_not_even_looked_at(pair):
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
def test_j08_a_header_that_asks_for_more_is_refused(extra):
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


def test_j13_a_token_for_somebody_is_refused_when_this_gateway_has_no_name():
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
def test_j19_a_subject_may_be_any_other_text_or_none(sub):
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


def test_the_route_where_tokens_are_refreshed_asks_for_refresh_tokens():
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


def test_j29_a_remembered_token_ends_on_time():
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


def test_j29_nothing_that_was_refused_is_remembered():
    gate = Gate()
    for token in ("x", signed(claims(exp=1)), signed(GOOD, secret="e" * 32)):
        gate.bearer(token)
    assert len(gate.stack._cache) == 0


def test_j29_what_is_remembered_is_bounded_and_the_latest():
    gate = Gate(cache_size=10)
    tokens = [signed(claims(sub=f"user-{number}")) for number in range(50)]
    for token in tokens:
        assert gate.bearer(token)[0] == 200
        assert len(gate.stack._cache) <= 10
    assert len(gate.stack._cache) >= 5


def test_a_token_in_use_outlives_those_that_are_not():
    recent = TokenCache(10)
    recent.put(b"used", "verified")
    for number in range(100):
        recent.put(str(number).encode(), "other")
        assert recent.get(b"used") == "verified"
        assert len(recent) <= 10
    assert recent.get(b"5") is None


@pytest.mark.parametrize("size", [0, 1])
def test_nothing_is_remembered_when_that_is_said(size):
    gate = Gate(cache_size=size)
    assert gate.bearer(signed(GOOD))[0] == gate.bearer(signed(GOOD))[0] == 200
    assert len(gate.stack._cache) == 0


@pytest.mark.parametrize("extra", [{"role": "a"}, {"roles": ["a"], "org": {"id": 1}}])
def test_each_request_gets_claims_of_its_own(extra):
    gate = Gate()
    token = signed(claims(**extra))
    for _ in range(3):
        gate.bearer(token)
        assert gate.claims == {**GOOD, **extra}
        gate.claims["sub"] = "admin"
        gate.claims.get("roles", []).append("admin")
        gate.claims.get("org", {})["id"] = 2


def test_threads_share_what_is_remembered():
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


def test_j33_what_fails_while_verifying_never_passes():
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
