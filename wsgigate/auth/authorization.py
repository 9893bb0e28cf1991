"""Authorization: what a verified caller may do. Decisions only, without I/O.

A request is allowed if every rule that matches it is satisfied, and if at least one matches. So an
additional rule can only forbid more, and the order of rules has no effect: a path that two rules
interpret differently cannot slip through the weaker one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from wsgigate.auth.challenge import checked_scopes
from wsgigate.auth.claims import ClaimRequirements, RequiredClaims
from wsgigate.auth.identity import Identity
from wsgigate.http.bodies import shown
from wsgigate.http.caller import matching
from wsgigate.http.wsgi import environ_key
from wsgigate.rules.arguments import Method, checked
from wsgigate.rules.claims import ClaimPath, names_one_of

__all__ = [
    "ALLOW",
    "GROUPS",
    "ROLES",
    "Authorization",
    "AuthorizationRule",
    "Policy",
    "PolicyDecision",
    "PolicyFailed",
    "RequestFacts",
    "deny",
]

ROLES = ("roles", "realm_access.roles")
"""The claims that hold roles: Entra and many others, Keycloak's realm roles."""

GROUPS = ("groups", "cognito:groups")
"""The claims that hold groups: Entra, Okta and Keycloak, Cognito."""


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """The facts of a request, by which a policy decides.

    :param method: The method, in upper case.
    :param path: The canonical path, percent-encoded, as it is matched and forwarded.
    :param query: The query; None without one.
    :param host: The requested host, in lower case and without port.
    :param route: The name of the matching route; None outside of one.
    :param params: The path parameters of the route, by name.
    :param client: The client's address.
    :param environ: The WSGI environment, for everything else.
    """

    method: str
    path: str
    query: str | None = None
    host: str = ""
    route: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    client: str = ""
    environ: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def header(self, name: str) -> str | None:
        """Return the value of the request field *name*, which the client may choose; else None."""
        value: str | None = self.environ.get(environ_key(name))
        return value


@dataclass(frozen=True, slots=True)
class PolicyDecision:
    """The decision about a request.

    :param allowed: Whether the request may pass.
    :param reason: Why not, for the log only.
    :param rule: The name of the rule that decided.
    :param scopes: The scopes that are required, if the caller lacks one of them.
    """

    allowed: bool
    reason: str = ""
    rule: str = ""
    scopes: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return self.allowed


ALLOW = PolicyDecision(allowed=True)
"""What a policy returns to allow a request."""


def deny(reason: str) -> PolicyDecision:
    """Return what a policy returns to reject a request.

    :param reason: The cause, for the log; clients do not see it.
    """
    return PolicyDecision(allowed=False, reason=reason)


Policy: TypeAlias = Callable[[Identity, RequestFacts], "PolicyDecision | bool"]
"""Decides about a request; any other value than these, such as None, is an error and rejects it."""


class PolicyFailed(Exception):
    """A policy raised an exception, its cause, or returned no decision.

    :param rule: The name of the rule of the policy.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: the policy failed: {message}")
        self.rule = rule


@checked
class AuthorizationRule:
    """What callers need for some requests. Every argument that is given must be satisfied.

    :param name: The name of the rule in the log. Default: its position.
    :param methods: The methods that the rule is for; ``GET`` includes ``HEAD``. Default: all.
    :param paths: The paths that the rule is for, in every spelling that an app may serve; see
        :func:`wsgigate.http.caller.matching`. Default: all.
    :param scopes: Required scopes, all of them.
    :param roles: The caller needs one of these roles.
    :param groups: The caller needs to be in one of these groups.
    :param claims: Required claims: a list of paths, or a table of paths and values. The claim must
        equal the value, or one of a list of values; a claim that is a list must contain one.
    :param policy: A function of the identity and the :class:`RequestFacts`; it returns ``ALLOW``
        or ``deny("reason")`` of :mod:`wsgigate.auth.authorization`, true or false.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        *,
        name: str = "",
        methods: Sequence[Method] = (),
        paths: Sequence[str] = (),
        scopes: Sequence[str] = (),
        roles: Sequence[str] = (),
        groups: Sequence[str] = (),
        claims: RequiredClaims = (),
        policy: Policy | None = None,
    ) -> None:
        self.name = name
        self.matches = matching(paths=paths, methods=methods) if paths or methods else None
        """Returns whether the rule is for a request; None if it is for all."""
        self.scopes = checked_scopes(scopes)
        self.roles = _names("roles", roles)
        self.groups = _names("groups", groups)
        self.claims = ClaimRequirements(claims, "claims")
        if policy is not None and not callable(policy):
            raise ValueError(f"policy: expected a function, not {policy!r}")
        if inspect.iscoroutinefunction(policy):
            raise ValueError("policy: expected a function, not a coroutine function")
        self.policy = policy


class Authorization:
    """The rules of a route.

    :param rules: The rules by name. Each request needs at least one that matches it.
    :param always: A rule that must be satisfied besides; it does not count as a match if there are
        *rules*.
    :param roles_from: The paths of the claims that hold roles.
    :param groups_from: The paths of the claims that hold groups.
    :raises ValueError: A path is malformed.
    """

    def __init__(
        self,
        rules: Mapping[str, AuthorizationRule],
        always: tuple[str, AuthorizationRule],
        *,
        roles_from: Sequence[str] = ROLES,
        groups_from: Sequence[str] = GROUPS,
    ) -> None:
        self._rules = tuple(map(_named, rules, rules.values()))
        self._always = _named(*always)
        self._roles_from = _paths("roles_from", roles_from)
        self._groups_from = _paths("groups_from", groups_from)

    def decide(
        self,
        identity: Identity,
        environ: dict[str, Any],
        facts: Callable[[dict[str, Any]], RequestFacts],
    ) -> PolicyDecision:
        """Return whether *identity* may make a request, and the rule that decided.

        :param environ: The WSGI environment, by which rules match.
        :param facts: Returns the facts of *environ*, for policies.
        :raises PolicyFailed: A policy raised an exception, or returned no decision.
        """
        decided = self._decided(self._always, identity, environ, facts)
        if not decided.allowed or not self._rules:
            return decided
        satisfied = []
        for named in self._rules:
            matches = named.rule.matches
            if matches is None or matches(environ):
                decided = self._decided(named, identity, environ, facts)
                if not decided.allowed:
                    return decided
                satisfied.append(decided)
        if len(satisfied) == 1:
            return satisfied[0]
        if not satisfied:
            reason = f"no rule allows {shown(environ['REQUEST_METHOD'])} on this path"
            return PolicyDecision(allowed=False, reason=reason, rule=self._always.name)
        return PolicyDecision(allowed=True, rule=", ".join(each.rule for each in satisfied))

    def required_scopes(self, environ: dict[str, Any]) -> frozenset[str]:
        """Return the scopes that a request requires, for a caller that has no token yet."""
        scopes = self._always.rule.scopes
        for _, rule, _ in self._rules:
            if rule.scopes and (rule.matches is None or rule.matches(environ)):
                scopes |= rule.scopes
        return scopes

    def _decided(
        self,
        named: _Named,
        identity: Identity,
        environ: dict[str, Any],
        facts: Callable[[dict[str, Any]], RequestFacts],
    ) -> PolicyDecision:
        name, rule, allowed = named
        if not rule.scopes <= identity.scopes:
            missing = ", ".join(sorted(rule.scopes - identity.scopes))
            return PolicyDecision(False, f"the caller lacks the scope {missing}", name, rule.scopes)
        claims = identity.claims
        if rule.roles and not _has_one(claims, self._roles_from, rule.roles):
            return PolicyDecision(False, _lacks("roles", rule.roles, claims), name)
        if rule.groups and not _has_one(claims, self._groups_from, rule.groups):
            return PolicyDecision(False, _lacks("groups", rule.groups, claims), name)
        unmet = rule.claims.unmet(claims)
        if unmet:
            return PolicyDecision(False, f"required claim: {unmet}", name)
        if rule.policy is not None:
            return _asked(rule.policy, name, identity, facts(environ))
        return allowed


class _Named(NamedTuple):
    """A rule by its name, and the decision if it is satisfied, which is made once."""

    name: str
    rule: AuthorizationRule
    allowed: PolicyDecision


def _named(name: str, rule: AuthorizationRule) -> _Named:
    return _Named(name, rule, PolicyDecision(allowed=True, rule=name))


def _has_one(
    claims: Mapping[str, Any], paths: tuple[ClaimPath, ...], wanted: frozenset[str]
) -> bool:
    return any(names_one_of(path.find(claims), wanted) for path in paths)


def _lacks(what: str, wanted: frozenset[str], claims: Mapping[str, Any]) -> str:
    reason = f"the caller has none of the {what} {', '.join(map(shown, sorted(wanted)))}"
    links = claims.get("_claim_names")
    if isinstance(links, Mapping) and what in links:
        reason += (
            f"; its token has a link instead of its {what}, as Entra sends for many of them: "
            "assign them to the application, or use app roles"
        )
    return reason


def _asked(policy: Policy, name: str, identity: Identity, facts: RequestFacts) -> PolicyDecision:
    try:
        answer: object = policy(identity, facts)
    except Exception as error:
        raise PolicyFailed(name, type(error).__name__) from error
    if isinstance(answer, bool):
        answer = PolicyDecision(allowed=answer)
    if not isinstance(answer, PolicyDecision):
        kind = type(answer).__name__
        raise PolicyFailed(name, f"it returned {kind}, not ALLOW, deny(reason), True or False")
    reason = answer.reason or ("" if answer.allowed else "the policy does not allow it")
    return PolicyDecision(answer.allowed is True, reason, name)


def _names(setting: str, names: Sequence[str]) -> frozenset[str]:
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f'{setting}: expected a list of names such as ["clerk"], not {names!r}')
    return frozenset(names)


def _paths(setting: str, paths: Sequence[str]) -> tuple[ClaimPath, ...]:
    if isinstance(paths, str):
        raise ValueError(f'{setting}: expected a list such as ["roles"], not {paths!r}')
    try:
        return tuple(map(ClaimPath, paths))
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None
