"""The rules of authorization as a table, and as the tokens of real providers meet them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.providers import TOKENS
from wsgigate import AuthorizationRule, Identity
from wsgigate.auth.authorization import (
    ALLOW,
    Authorization,
    PolicyDecision,
    PolicyFailed,
    RequestFacts,
    deny,
)

ANN = Identity(
    subject="ann",
    scheme="bearer",
    claims={
        "roles": ["clerk", "Order Manager"],
        "groups": ["staff"],
        "tenant": "north",
        "level": 3,
        "org": {"id": 7},
    },
    scopes=frozenset({"orders:read", "orders:write"}),
)


def decided(
    identity: Identity = ANN,
    method: str = "GET",
    path: str = "/",
    rules: dict[str, dict[str, Any]] | None = None,
    roles_from: Any = ("roles", "realm_access.roles"),
    **always: Any,
) -> PolicyDecision:
    authorization = Authorization(
        {name: AuthorizationRule(**rule) for name, rule in (rules or {}).items()},
        ("always", AuthorizationRule(**always)),
        roles_from=roles_from,
    )
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path}
    return authorization.decide(identity, environ, lambda _: RequestFacts(method, path))


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({}, ""),
        ({"scopes": ["orders:read"]}, ""),
        ({"scopes": ["orders:read", "orders:write"]}, ""),
        ({"scopes": ["orders:read", "b", "a"]}, "the caller lacks the scope a, b"),
        ({"scopes": ["Orders:read"]}, "the caller lacks the scope Orders:read"),
        ({"roles": ["admin", "clerk"]}, ""),
        ({"roles": ["Order Manager"]}, ""),
        ({"roles": ["admin", "owner"]}, "the caller has none of the roles 'admin', 'owner'"),
        ({"roles": ["staff"]}, "the caller has none of the roles 'staff'"),
        ({"groups": ["staff"]}, ""),
        ({"groups": ["clerk"]}, "the caller has none of the groups 'clerk'"),
        ({"claims": ["tenant"]}, ""),
        ({"claims": {"tenant": ["north", "south"], "level": 3}}, ""),
        ({"claims": {"org.id": 7}}, ""),
        ({"claims": {"roles": "clerk"}}, ""),
        ({"claims": {"tenant": "south"}}, "required claim: tenant is 'north'"),
        ({"claims": {"org.name": "x"}}, "required claim: no org.name"),
        ({"claims": {"level": True}}, "required claim: level is 3"),
        ({"policy": lambda identity, facts: True}, ""),
        ({"policy": lambda identity, facts: ALLOW}, ""),
        ({"policy": lambda identity, facts: False}, "the policy does not allow it"),
        ({"policy": lambda identity, facts: deny("too late")}, "too late"),
        ({"policy": lambda identity, facts: deny("")}, "the policy does not allow it"),
        ({"scopes": ["orders:read"], "roles": ["admin"]}, "the caller has none of the roles"),
        ({"roles": ["clerk"], "groups": ["none"]}, "the caller has none of the groups 'none'"),
    ],
)
def test_every_requirement_of_a_rule_must_be_satisfied(rule: dict[str, Any], reason: str) -> None:
    found = decided(**rule)
    assert found.allowed is not bool(reason)
    assert found.reason.startswith(reason)
    assert found.rule == "always"
    assert decided(rules={"one": rule}).rule == "one"


RULES: dict[str, dict[str, Any]] = {
    "read": {"methods": ["GET"], "scopes": ["orders:read"]},
    "write": {"methods": ["POST", "DELETE"], "scopes": ["orders:write"]},
    "refund": {"paths": ["/refunds/*"], "roles": ["manager"]},
}


@pytest.mark.parametrize(
    ("method", "path", "allowed", "rule"),
    [
        ("GET", "/", True, "read"),
        ("HEAD", "/", True, "read"),
        ("get", "/", True, "read"),
        ("POST", "/", True, "write"),
        ("DELETE", "/", True, "write"),
        ("PATCH", "/", False, "always"),
        ("OPTIONS", "/", False, "always"),
        ("BREW", "/", False, "always"),
        ("GET", "/refunds/7", False, "refund"),
        ("GET", "//refunds/7", False, "refund"),
        ("GET", "/x/../refunds/7", False, "refund"),
        ("GET", "/refunds/../x", False, "refund"),
        ("POST", "/refunds", False, "refund"),
        ("PATCH", "/refunds/7", False, "refund"),
    ],
)
def test_all_rules_that_match_must_be_satisfied_and_at_least_one_must_match(
    method: str, path: str, allowed: bool, rule: str
) -> None:
    found = decided(method=method, path=path, rules=RULES)
    assert (found.allowed, found.rule) == (allowed, rule)
    backwards = dict(reversed(RULES.items()))
    assert decided(method=method, path=path, rules=backwards).allowed is allowed


def test_what_every_request_requires_comes_first_and_is_no_match() -> None:
    found = decided(rules=RULES, roles=["admin"])
    assert (found.allowed, found.rule) == (False, "always")
    assert not decided(method="PATCH", rules=RULES, roles=["clerk"])
    both = {**RULES, "staff": {"groups": ["staff"]}}
    assert decided(rules=both).rule == "read, staff"


def test_a_missing_scope_is_named_with_all_scopes_of_its_rule() -> None:
    found = decided(method="POST", rules={"write": {"scopes": ["orders:read", "pay"]}})
    assert found.scopes == {"orders:read", "pay"}
    assert decided(roles=["admin"]).scopes == set()


@pytest.mark.parametrize("value", [None, True, 7, {"clerk": True}, [["clerk"]], [7], "", []])
def test_a_claim_of_a_wrong_type_grants_nothing(value: object) -> None:
    caller = Identity(subject="ann", scheme="bearer", claims={"roles": value, "groups": value})
    assert not decided(caller, roles=["clerk"])
    assert not decided(caller, groups=["clerk"])


def test_a_role_with_control_characters_or_a_look_alike_is_another_role() -> None:
    for role in ("clerk\x00", "clerk ", "Clerk", "cl\u0435rk", "clerk\u200b", "clerk,admin"):
        caller = Identity(subject="ann", scheme="bearer", claims={"roles": [role]})
        assert not decided(caller, roles=["clerk", "admin"])


# What providers send.

KEYCLOAK_CLIENT = ['resource_access."orders.api".roles']


@pytest.mark.parametrize(
    ("provider", "rule", "allowed"),
    [
        ("auth0", {"scopes": ["write:orders"]}, True),
        ("auth0", {"claims": {"https://example.com/roles": "clerk"}}, True),
        ("auth0", {"roles": ["clerk"], "roles_from": ["https://example.com/roles"]}, True),
        ("keycloak", {"roles": ["clerk"]}, True),
        ("keycloak", {"roles": ["manage-account"]}, False),
        ("keycloak", {"roles": ["refund"]}, False),
        ("keycloak", {"roles": ["refund"], "roles_from": KEYCLOAK_CLIENT}, True),
        ("keycloak", {"groups": ["/staff/berlin"]}, True),
        ("entra-v1", {"roles": ["Orders.Clerk"], "scopes": ["Orders.Write"]}, True),
        ("entra-v1", {"groups": ["3be36a4e-9b7a-4d0f-8f0c-d0e7c3bb1a11"]}, True),
        ("entra-v2", {"roles": ["Orders.Clerk"]}, True),
        ("cognito", {"groups": ["clerks"]}, True),
        ("cognito", {"scopes": ["https://orders.example.com/orders.read"]}, True),
        ("okta", {"groups": ["Order Clerks"]}, True),
        ("google", {"claims": {"hd": "example.com", "email_verified": True}}, True),
        ("google", {"scopes": ["openid"]}, False),
    ],
)
def test_the_roles_and_groups_of_providers(
    provider: str, rule: dict[str, Any], allowed: bool
) -> None:
    assert decided(Identity.from_claims(TOKENS[provider]), **rule).allowed is allowed


def test_groups_that_entra_leaves_out_are_explained() -> None:
    found = decided(Identity.from_claims(TOKENS["entra-v2"]), groups=["staff"])
    assert "has a link instead of its groups" in found.reason


# Policies.


def failing(identity: Identity, facts: RequestFacts) -> bool:
    raise KeyError("tenant")


async def coroutine(identity: Identity, facts: RequestFacts) -> bool:
    return True


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (failing, "one: the policy failed: KeyError"),
        (lambda identity, facts: None, "it returned NoneType, not ALLOW, deny"),
        (lambda identity, facts: "ok", "it returned str"),
        (lambda identity, facts: 1, "it returned int"),
        (lambda identity, facts: (True, "ok"), "it returned tuple"),
        (lambda identity, facts: coroutine, "it returned function"),
    ],
)
def test_a_policy_that_fails_or_returns_no_decision_allows_nothing(
    policy: Any, message: str
) -> None:
    with pytest.raises(PolicyFailed, match=message) as raised:
        decided(rules={"one": {"policy": policy}})
    assert raised.value.rule == "one"


def test_a_policy_sees_the_identity_and_the_facts_of_the_request() -> None:
    seen: list[object] = []
    policy: Any = lambda *given: seen.extend(given) or True  # noqa: E731
    assert decided(method="POST", path="/orders", policy=policy)
    assert seen == [ANN, RequestFacts("POST", "/orders")]


def test_a_policy_is_asked_only_if_all_else_is_satisfied() -> None:
    assert not decided(policy=failing, roles=["admin"])
    assert not decided(rules={"a": {"methods": ["POST"], "policy": failing}})


def test_the_facts_have_the_fields_of_the_request() -> None:
    facts = RequestFacts("GET", "/", environ={"HTTP_X_TENANT": "north"})
    assert (facts.header("x-tenant"), facts.header("X-Other")) == ("north", None)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"scopes": "read"}, 'scopes: expected a list such as \\["read"\\], not'),
        ({"scopes": ["a b"]}, "scopes: 'a b' is not a scope name"),
        ({"roles": "clerk"}, "roles: expected a list of names"),
        ({"roles": [""]}, "roles: expected a list of names"),
        ({"groups": [7]}, "groups: expected a list of names"),
        ({"claims": {"a": []}}, "claims: a: an empty list would reject every token"),
        ({"claims": {"a..b": 1}}, "claims: 'a..b' is not the path of a claim"),
        ({"methods": ["get"]}, "methods: 'get' is not a method in upper case"),
        ({"paths": ["login"]}, "paths: 'login': expected a path"),
        ({"policy": 7}, "policy: expected a function"),
        ({"policy": coroutine}, "policy: expected a function, not a coroutine function"),
    ],
)
def test_a_rule_that_could_not_be_meant_is_rejected(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        AuthorizationRule(**rule)
