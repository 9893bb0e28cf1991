"""Authorization of verified callers: by scopes, roles, groups, claims and policies."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.access import AccessCheck
from wsgigate.auth.authorization import (
    GROUPS,
    ROLES,
    Authorization,
    AuthorizationRule,
    Policy,
)
from wsgigate.auth.claims import RequiredClaims
from wsgigate.http.caller import Exempt, exempt_of
from wsgigate.http.problem import Problem, Refuse, answer_with, refused
from wsgigate.http.wsgi import REASON, RULE, is_preflight
from wsgigate.rules.arguments import checked
from wsgigate.runtime.clocks import wall
from wsgigate.runtime.logs import ThrottledLog
from wsgigate.telemetry.metrics import Counter

__all__ = ["Authorizer"]

_log = logging.getLogger("wsgigate.authorizer")


DECISIONS = Counter(
    "wsgigate_authorization",
    "Decisions of authorizers by the rule that decided: allowed, denied, or observed (it would "
    "have been denied).",
    ("rule", "result"),
)


@checked
class Authorizer:
    """Authorization: allow requests of verified callers that satisfy the rules only.

    It stands inside of a middleware that authenticates, such as an :class:`Authenticator`, and
    reads the caller from ``environ["wsgigate.identity"]``. A request without a verified caller gets
    a 401, one that a rule forbids a 403. Without any rule, each verified caller is allowed.

    The name of the rule that decided is in ``environ["wsgigate.rule"]`` and in the access log, the
    cause of a rejection in ``environ["wsgigate.reason"]``.

    :param app: The WSGI application to protect.
    :param scopes: Scopes that every request requires, all of them.
    :param roles: Every request requires one of these roles.
    :param groups: Every request requires one of these groups.
    :param claims: Claims that every request requires: a list of paths, or a table of paths and
        values. The claim must equal the value, or one of a list of values; a claim that is a list
        must contain one of them.
    :param policy: A function of the :class:`Identity` and the ``RequestFacts``; it returns
        ``ALLOW`` or ``deny("reason")`` of ``wsgigate.auth.authorization``, true or false. If it
        fails, the request is rejected with 500.
    :param rules: Rules for some methods and paths: :class:`AuthorizationRule` objects, or tables of
        their arguments. All rules that match a request must be satisfied; a request that none
        matches is rejected.
    :param roles_from: The paths of the claims that hold roles; Keycloak's roles of a client are in
        ``resource_access.CLIENT.roles``.
    :param groups_from: The paths of the claims that hold groups.
    :param exempt: Requests that pass unchecked: a function of ``environ``, or a table of
        ``addresses``, ``paths``, ``methods`` and a ``rule``, as for a :class:`Limiter`.
    :param preflights: Whether CORS preflight requests are checked; browsers send no credentials
        with them. Default: they pass.
    :param observe: Dry run: log what would be rejected, and let it pass.
    :param name: The name of the rule for every request, in the log.
    :param realm: The name of the protected area, in ``WWW-Authenticate``.
    :param resource_metadata: The URL of the metadata of this resource (RFC 9728), in
        ``WWW-Authenticate``, by which clients find the authorization server.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :param clock: Returns the time in seconds, for the interval between log records.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        scopes: Sequence[str] = (),
        roles: Sequence[str] = (),
        groups: Sequence[str] = (),
        claims: RequiredClaims = (),
        policy: Policy | None = None,
        rules: Sequence[AuthorizationRule | Mapping[str, Any]] = (),
        roles_from: Sequence[str] = ROLES,
        groups_from: Sequence[str] = GROUPS,
        exempt: Exempt | Mapping[str, Any] | None = None,
        preflights: bool = False,
        observe: bool = False,
        name: str = "default",
        realm: str = "api",
        resource_metadata: str | None = None,
        refuse: Refuse = answer_with,
        clock: Callable[[], float] = wall,
    ) -> None:
        always = AuthorizationRule(
            scopes=scopes, roles=roles, groups=groups, claims=claims, policy=policy
        )
        self.app = app
        self._check = AccessCheck(
            Authorization(
                _named(rules), (name, always), roles_from=roles_from, groups_from=groups_from
            ),
            realm=realm,
            resource_metadata=resource_metadata,
            clock=clock,
        )
        self._exempt = exempt_of(exempt)
        self._passes_preflights = not preflights
        self._observes = observe
        self._refuse = refuse
        self._observed = ThrottledLog(
            _log.warning,
            "%s requests would have been rejected since the last such message, the last one as %s",
            clock,
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.pop(RULE, None)
        if self._exempt is not None and self._exempt(environ):
            return self.app(environ, start_response)
        if "HTTP_ORIGIN" in environ and self._passes_preflights and is_preflight(environ):
            return self.app(environ, start_response)
        refusal = self._check.refusal(environ)
        if refusal is None:
            self._count("allowed", environ)
            return self.app(environ, start_response)
        return self._reject(refusal.problem, str(refusal), environ, start_response)

    @property
    def observed(self) -> int:
        """Number of requests that would have been rejected without *observe*."""
        return self._observed.total

    def _count(self, result: str, environ: WSGIEnvironment) -> None:
        DECISIONS.labels(environ.get(RULE, ""), result).add()

    def _reject(
        self,
        problem: Problem,
        reason: str,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        self._count("observed" if self._observes else "denied", environ)
        if self._observes:
            environ[REASON] = f"only observed: {reason}"
            self._observed.log(f"{problem.status}: {reason}")
            return self.app(environ, start_response)
        refused(environ, "Authorizer", reason)
        return self._refuse(problem)(environ, start_response)


def _named(rules: Sequence[AuthorizationRule | Mapping[str, Any]]) -> dict[str, AuthorizationRule]:
    """Return the rules by name."""
    if isinstance(rules, (str, Mapping)) or not isinstance(rules, Iterable):
        raise ValueError(f"rules: expected a list of rules, not {type(rules).__name__}")
    named: dict[str, AuthorizationRule] = {}
    for index, given in enumerate(rules):
        where = f"rules[{index}]"
        rule = given if isinstance(given, AuthorizationRule) else _rule(given, where)
        name = rule.name or where
        if name in named:
            raise ValueError(f"{where}.name: {name!r} is the name of another rule")
        named[name] = rule
    return named


_ARGUMENTS = frozenset(inspect.signature(AuthorizationRule).parameters)


def _rule(given: object, where: str) -> AuthorizationRule:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: expected an AuthorizationRule or a table, not {given!r}")
    unknown = [name for name in given if name not in _ARGUMENTS]
    if unknown:
        raise ValueError(f"{where}: {unknown[0]!r} is not an argument of a rule")
    try:
        return AuthorizationRule(**given)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None
