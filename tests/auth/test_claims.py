"""The claims that a token must have, as tables."""

from __future__ import annotations

import pytest

from wsgigate.auth.claims import granted_scopes
from wsgigate.auth.jwt import KINDS, ClaimRules, TokenRejected

STRICT = {"issuer": "me", "audience": "us", "leeway": 10, "max_lifetime": 100, "typ": "at+jwt"}
CLAIMS = {"iss": "me", "aud": "us", "sub": "a", "iat": 1000, "nbf": 1000, "exp": 1050}


@pytest.mark.parametrize(
    ("changes", "now", "reason"),
    [
        ({}, 1000, None),
        ({}, 990, None),
        ({}, 989.9, "not valid for another 10 s"),
        ({"nbf": ...}, 989.9, "issued 10 s in the future"),
        ({}, 1059.9, None),
        ({}, 1060, "expired 10 s ago"),
        ({"exp": ...}, 1000, "no exp"),
        ({"exp": "1050"}, 1000, "exp is '1050'"),
        ({"exp": True}, 1000, "exp is True"),
        ({"exp": None}, 1000, "exp is None"),
        ({"exp": float("inf")}, 1000, "exp is inf"),
        ({"exp": 10**400}, 1000, "exp is 1000"),
        ({"nbf": []}, 1000, r"nbf is \[\]"),
        ({"iat": "x"}, 1000, "iat is 'x'"),
        ({"iat": ...}, 1000, "no iat, which max_lifetime requires"),
        ({"exp": 1100}, 1000, None),
        ({"exp": 1100.5}, 1000, "^valid for 100 s, longer than max_lifetime"),
        ({"iss": "Me"}, 1000, "issued by 'Me', not by 'me'"),
        ({"iss": ...}, 1000, "issued by None"),
        ({"aud": ["them", "us"]}, 1000, None),
        ({"aud": "them"}, 1000, "for the audience 'them', not 'us'"),
        ({"aud": []}, 1000, r"for the audience \[\]"),
        ({"aud": 5}, 1000, "aud is 5"),
        ({"aud": ...}, 1000, r"no audience \(aud\), which must be 'us'"),
        ({"sub": ...}, 1000, None),
        ({"sub": ""}, 1000, "sub is ''"),
        ({"sub": "a\n"}, 1000, "sub is"),
    ],
)
def test_claims_are_accepted_or_rejected_with_their_reason(changes, now, reason):
    """RFC 7519 section 4.1; security J09 to J14, J19."""
    claims = {name: value for name, value in {**CLAIMS, **changes}.items() if value is not ...}
    rules = ClaimRules(**STRICT)
    if reason is None:
        assert rules.check(claims, now) == claims["exp"] + 10
    else:
        with pytest.raises(TokenRejected, match=f"^{reason}"):
            rules.check(claims, now)


def test_by_default_only_expiry_and_audience_are_checked():
    rules = ClaimRules()
    assert rules.check({"exp": 1000, "iss": ["x"]}, 1029.9) == 1030
    rules.check_header({"alg": "HS256"})
    with pytest.raises(TokenRejected, match="for the audience 'them', and none is configured"):
        rules.check({"exp": 1000, "aud": "them"}, 0)


MARKS = [
    # claims, header, the kind that it is rejected as
    ({"type": "refresh"}, {}, "refresh"),
    ({"type": "REFRESH_TOKEN"}, {}, "refresh"),
    ({"token_type": "refresh"}, {}, "refresh"),
    ({"token_type": "Refresh-Token"}, {}, "refresh"),
    ({"tokenType": "refreshToken"}, {}, "refresh"),
    ({"token_use": "refresh"}, {}, "refresh"),
    ({"tokenUse": "refresh"}, {}, "refresh"),
    ({"typ": "Refresh"}, {}, "refresh"),
    ({"typ": "Offline"}, {}, "refresh"),
    ({"token_type": "urn:ietf:params:oauth:token-type:refresh_token"}, {}, "refresh"),
    ({"type": "access", "token_type": "refresh"}, {}, "refresh"),
    ({}, {"typ": "refresh+jwt"}, "refresh"),
    ({}, {"typ": "application/refresh+jwt"}, "refresh"),
    ({}, {"typ": "rt+jwt"}, "refresh"),
    ({"typ": "ID"}, {"typ": "JWT"}, "id"),
    ({"token_type": "id_token"}, {}, "id"),
    ({}, {"typ": "id_token+jwt"}, "id"),
    ({"typ": "Logout"}, {}, "logout"),
    ({"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}, {}, "logout"),
    ({"events": {"deployed": 1}}, {}, None),
    ({"typ": "Serialized-ID"}, {}, "id"),
    ({"typ": "reset-credentials"}, {}, "action"),
    ({"typ": "idp-verify-account-via-email"}, {}, "action"),
    ({}, {"typ": "logout+jwt"}, "logout"),
    ({}, {"typ": "secevent+jwt"}, "event"),
    ({}, {"typ": "dpop+jwt"}, "proof"),
    ({}, {"typ": "client-authentication+jwt"}, "proof"),
    ({}, {"typ": "oauth-authz-req+jwt"}, "request"),
    ({}, {"typ": "token-introspection+jwt"}, "introspection"),
    ({"type": "password_reset"}, {}, "action"),
    ({"token_type": "verify-email"}, {}, "action"),
    ({"purpose": "reset_password_token"}, {}, "action"),
    ({"purpose": "refresh"}, {}, "refresh"),
    ({"purpose": "access"}, {}, None),
    # access tokens, and what is no mark at all
    ({"type": "access"}, {"typ": "JWT"}, None),
    ({"token_type": "access"}, {"typ": "at+jwt"}, None),
    ({"token_type": "sliding"}, {"typ": "application/at+jwt"}, None),
    ({"typ": "Bearer"}, {"typ": "JWT"}, None),
    ({"token_type": "Bearer"}, {}, None),
    ({"token_type": "DPoP"}, {}, None),  # of an access token that is bound to a key (RFC 9449)
    ({"typ": "DPoP"}, {"typ": "JWT"}, None),  # Keycloak's
    ({"typ": "DPoP"}, {"typ": "dpop+jwt"}, "proof"),
    ({"token_use": "access"}, {}, None),
    ({"token_use": "id"}, {}, None),  # AWS Cognito: accepted by gateways
    ({"type": "admin"}, {"typ": "jose"}, None),
    ({"type": "offline"}, {}, None),  # Shopify's access tokens are online or offline
    ({"type": ["refresh"], "typ": 5, "token_type": None}, {"typ": None}, None),
    ({"type": "jwt"}, {"typ": ""}, None),
    ({"refresh": True, "scope": "refresh"}, {"typ": 7}, None),
]


@pytest.mark.parametrize(("changes", "header", "kind"), MARKS)
def test_a_token_marked_as_another_type_is_rejected(changes, header, kind):
    """RFC 8725 section 3.11, RFC 9068 section 2.1."""

    def check(rules):
        rules.check_header({"alg": "HS256", **header})
        rules.check({"exp": 1050, **changes}, 1000)

    if kind is None:
        check(ClaimRules())
        return
    with pytest.raises(TokenRejected, match=r"^no access token: "):
        check(ClaimRules())
    check(ClaimRules(also_accept=[kind]))
    for other in set(KINDS) - {kind}:
        with pytest.raises(TokenRejected):
            check(ClaimRules(also_accept=[other]))


def test_a_header_of_the_required_type_is_accepted():
    ClaimRules(typ="refresh+jwt").check_header({"typ": "refresh+jwt"})


@pytest.mark.parametrize(
    ("required", "claims", "reason"),
    [
        (["tenant"], {"tenant": None}, None),
        (["tenant", "exp"], {}, "no tenant"),
        ({"type": "access"}, {"type": "access"}, None),
        ({"type": "access"}, {"type": "Access"}, "type is 'Access'"),
        ({"type": "access"}, {"type": ["access", "x"]}, None),
        ({"type": "access"}, {"type": ["x", ["access"]]}, "type is"),
        ({"type": "access"}, {"type": {"access": 1}}, "type is"),
        ({"type": "access"}, {}, "no type"),
        ({"type": "refresh"}, {"type": "refresh"}, None),
        ({"type": "refresh"}, {"type": "refresh", "typ": "Refresh"}, "no access token: typ is"),
        ({"type": ["refresh"]}, {"type": "access"}, "type is 'access'"),
        ({"tenant": ("a", "b")}, {"tenant": "b"}, None),
        ({"tenant": ("a", "b")}, {"tenant": "c"}, "tenant is 'c'"),
        ({"level": 3}, {"level": 3.0}, None),
        ({"level": 1}, {"level": True}, "level is True"),
        ({"admin": True}, {"admin": 1}, "admin is 1"),
        ({"admin": True}, {"admin": True}, None),
        ({"admin": False}, {}, "no admin"),
        ({"https://example.com/roles": "ops"}, {"https://example.com/roles": ["ops"]}, None),
        ({"realm_access.roles": "ops"}, {"realm_access": {"roles": ["ops"]}}, None),
        (["realm_access.roles"], {"realm_access": {}}, "no realm_access.roles"),
        ({"a.b": "c"}, {"a": "b", "a.b": "c"}, "no a.b"),
        ({'"a.b"': "c"}, {"a.b": "c"}, None),
        ({'"type"': "refresh"}, {"type": "refresh"}, None),
    ],
)
def test_required_claims_are_there_with_one_of_their_values(required, claims, reason):
    rules = ClaimRules(required_claims=required)
    if reason is None:
        rules.check({"exp": 1050, **claims}, 1000)
    else:
        with pytest.raises(TokenRejected, match=f"^{reason}"):
            rules.check({"exp": 1050, **claims}, 1000)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"typ": "at+jwt"}, None),
        ({"typ": "application/AT+JWT", "kid": "k", "jku": "http://evil"}, None),
        ({"typ": "at+jwt", "crit": []}, "a header with crit"),
        ({"typ": "at+jwt", "b64": True}, "a header with b64"),
        ({"typ": "at+jwt", "kid": 5}, "a kid that is not a short text: 5"),
        ({"typ": "at+jwt", "kid": "a\n"}, "a kid that is not a short text"),
        ({"typ": "JWT"}, "typ is 'JWT'"),
        ({}, "typ is None"),
    ],
)
def test_each_header_is_accepted_or_rejected_with_its_reason(header, reason):
    """RFC 7515 section 4.1; security J04, J08, J20."""
    rules = ClaimRules(**STRICT)
    if reason is None:
        rules.check_header(header)
    else:
        with pytest.raises(TokenRejected, match=f"^{reason}"):
            rules.check_header(header)


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({}, set()),
        ({"scope": "a b  c "}, {"a", "b", "c"}),
        ({"scp": ["a", 5, "b c"]}, {"a", "b c"}),
        ({"scope": "a", "scp": "b", "scopes": ["c"]}, {"a", "b", "c"}),
        ({"scope": "a", "permissions": ["read:b", "c"]}, {"a", "read:b", "c"}),
        ({"scope": None, "scopes": {"a": 1}}, set()),
    ],
)
def test_scopes_are_granted_under_four_names(claims, scopes):
    """RFC 8693 section 4.2."""
    assert granted_scopes(claims) == scopes
