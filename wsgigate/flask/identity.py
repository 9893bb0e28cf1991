"""The verified caller inside Flask, and what views require of it.

A middleware around the application verifies the caller; everything here reads what it has put into
``environ["wsgigate.identity"]``, and verifies nothing by itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import update_wrapper
from typing import Any, Literal, NoReturn, ParamSpec, TypeVar, cast, overload

from flask import Blueprint, Flask, current_app, has_request_context, request
from werkzeug.local import LocalProxy

from wsgigate.auth.access import AccessCheck
from wsgigate.auth.authorization import Authorization, AuthorizationRule, Policy
from wsgigate.auth.claims import RequiredClaims
from wsgigate.auth.identity import IDENTITY, Identity
from wsgigate.flask.refusals import raise_refused
from wsgigate.flask.settings import ViewSettings, settings_of
from wsgigate.http.problem import Refusal, refused
from wsgigate.http.wsgi import is_preflight

__all__ = [
    "Requirement",
    "current_identity",
    "get_identity",
    "requires",
    "verify_identity_in_request",
]

P = ParamSpec("P")
R = TypeVar("R")


def get_identity() -> Identity | None:
    """Return the verified caller of the current request; None without one, or without a request."""
    if not has_request_context():
        return None
    found = request.environ.get(IDENTITY)
    return found if isinstance(found, Identity) else None


current_identity: Identity = cast(Identity, LocalProxy(get_identity))
"""A proxy of the verified caller of the current request, an :class:`~wsgigate.Identity`.

Without a verified caller, and outside of a request, it is false and compares equal to ``None``, and
its attributes raise ``AttributeError``. A proxy is never ``is None``: ask ``if current_identity``,
or use :func:`get_identity`, which type checkers understand.
"""


@overload
def verify_identity_in_request(optional: Literal[False] = False) -> Identity: ...
@overload
def verify_identity_in_request(optional: bool) -> Identity | None: ...
def verify_identity_in_request(optional: bool = False) -> Identity | None:
    """Return the verified caller of the current request.

    :param optional: Whether to return None for a request without a verified caller.
    :raises MissingCredentials: There is none, and *optional* is false.
    """
    found = get_identity()
    if found is None and not optional:
        _ANYBODY.check()
    return found


class Requirement:
    """What a view requires of its caller; made by :func:`requires`.

    Called with a view, it returns the protected view; with a blueprint, it protects all its views.
    Called without an argument it checks the current request, so it is a ``before_request`` function
    as well. That form lets CORS preflight requests pass, which have no credentials.
    """

    def __init__(self, rule: AuthorizationRule, alternatives: Sequence[AuthorizationRule]) -> None:
        self._rule = rule
        self._alternatives = tuple(alternatives)
        self._checks: weakref.WeakKeyDictionary[Flask, tuple[AccessCheck, ...]]
        self._checks = weakref.WeakKeyDictionary()

    @overload
    def __call__(self, view: None = None) -> None: ...
    @overload
    def __call__(self, view: Blueprint) -> Blueprint: ...
    @overload
    def __call__(self, view: Callable[P, R]) -> Callable[P, R]: ...
    def __call__(self, view: Any = None) -> Any:
        if view is None:
            if not is_preflight(request.environ):
                self.check()
            return None
        if isinstance(view, Blueprint):
            view.before_request(self)
            return view

        def protected(*args: Any, **kwargs: Any) -> Any:
            self.check()
            return current_app.ensure_sync(view)(*args, **kwargs)

        return update_wrapper(protected, view)

    def check(self) -> Identity:
        """Check the current request, and return its verified caller.

        :raises MissingCredentials: It has no verified caller.
        :raises InsufficientPermissions: The caller may not do this.
        """
        environ = request.environ
        first, *alternatives = self._checks_of(current_app._get_current_object())  # type: ignore[attr-defined]
        refusal = first.refusal(environ)
        if refusal is None and alternatives:
            refusal = _of_all(alternatives, environ)
        if refusal is not None:
            _reject(refusal)
        return cast(Identity, environ[IDENTITY])

    def _checks_of(self, app: Flask) -> tuple[AccessCheck, ...]:
        checks = self._checks.get(app)
        if checks is None:
            settings = settings_of(app)
            checks = (
                _check(Authorization({}, (self._rule.name, self._rule), **_paths(settings)), app),
                *(
                    # a rule of this form is satisfied only by requests that it matches
                    _check(Authorization({each.name: each}, _ALWAYS, **_paths(settings)), app)
                    for each in self._alternatives
                ),
            )
            self._checks[app] = checks
        return checks


def requires(
    *scopes: str,
    roles: Sequence[str] = (),
    groups: Sequence[str] = (),
    claims: RequiredClaims = (),
    policy: Policy | None = None,
    any_of: Sequence[AuthorizationRule | Mapping[str, Any]] = (),
    name: str = "",
) -> Requirement:
    """Return a decorator for views that only some verified callers may use.

    ``@requires("orders:write")`` stands below ``@app.route``: above it, Flask calls the view
    without the check, and the view is open to everyone. ``decorators = [requires(...)]`` of a
    class-based view and ``blueprint.before_request(requires(...))`` work as well. Without
    arguments, any verified caller is allowed. A request without one raises
    :class:`MissingCredentials` (401), another caller :class:`InsufficientPermissions` (403).

    :param scopes: Required scopes, all of them.
    :param roles: The caller needs one of these roles.
    :param groups: The caller needs to be in one of these groups.
    :param claims: Required claims, as for an :class:`~wsgigate.AuthorizationRule`.
    :param policy: A function of the identity and the request's facts, as for an
        :class:`~wsgigate.AuthorizationRule`.
    :param any_of: Further rules, or tables of their arguments, of which one must be satisfied:
        ``any_of=[{"roles": ["admin"]}, {"scopes": ["orders:write"]}]``.
    :param name: The name of the rule, in the log. Default: made of the scopes.
    :raises ValueError: An argument is invalid; the message names it.
    """
    if any(map(callable, scopes)):
        raise ValueError("scopes: write @requires() with parentheses, also without an argument")
    called = name or "requires " + (" ".join(map(str, scopes)) or "a verified caller")
    rule = AuthorizationRule(
        name=called, scopes=scopes, roles=roles, groups=groups, claims=claims, policy=policy
    )
    return Requirement(rule, _alternatives(any_of, called))


def _alternatives(
    rules: Sequence[AuthorizationRule | Mapping[str, Any]], name: str
) -> list[AuthorizationRule]:
    if isinstance(rules, (str, Mapping)):
        raise ValueError(f'any_of: expected a list such as [{{"roles": ["admin"]}}], not {rules!r}')
    found = []
    for index, given in enumerate(rules):
        where = f"any_of[{index}]"
        if isinstance(given, AuthorizationRule):
            found.append(given)
            continue
        if not isinstance(given, Mapping):
            raise ValueError(f"{where}: expected an AuthorizationRule or a table, not {given!r}")
        try:
            found.append(AuthorizationRule(**{"name": f"{name} {where}", **given}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}.{error}") from None
    return found


def _of_all(checks: Sequence[AccessCheck], environ: dict[str, Any]) -> Refusal | None:
    """Return the first refusal; None if one of *checks* allows the request."""
    refusals: list[Refusal] = []
    for check in checks:
        refusal = check.refusal(environ)
        if refusal is None:
            return None
        if refusal.problem.status == 500:  # a policy that fails allows nothing
            return refusal
        refusals.append(refusal)
    reasons = "; ".join(map(str, refusals))
    return Refusal(refusals[0].problem, reasons)


def _check(authorization: Authorization, app: Flask) -> AccessCheck:
    settings = settings_of(app)
    return AccessCheck(
        authorization, realm=settings.realm, resource_metadata=settings.resource_metadata
    )


def _paths(settings: ViewSettings) -> dict[str, Any]:
    return {"roles_from": settings.roles_from, "groups_from": settings.groups_from}


def _reject(refusal: Refusal) -> NoReturn:
    refused(request.environ, "requires", str(refusal))
    raise_refused(refusal.problem)


_ALWAYS = ("any_of", AuthorizationRule())

_ANYBODY = requires(name="verify_identity_in_request")
