"""Decorators for views: who may call them, and how often.

:func:`requires` applies an :class:`~wsgigate.AuthorizationRule` to a view, as an Authorizer does to
a route; :func:`limit` counts by a :class:`~wsgigate.Limiter`. Both reject before the view runs, and
both work on functions, on methods by ``method_decorator``, and on coroutine functions that Django
runs under WSGI.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial, wraps
from hashlib import sha256
from inspect import iscoroutinefunction, unwrap
from typing import Any, ClassVar, TypeAlias, TypeVar
from wsgiref.types import WSGIEnvironment

from asgiref.sync import sync_to_async
from django.http import HttpResponse
from django.utils.module_loading import import_string

from wsgigate.auth.access import AccessCheck
from wsgigate.auth.authorization import GROUPS, ROLES, Authorization, AuthorizationRule, Policy
from wsgigate.auth.claims import RequiredClaims
from wsgigate.django.identity import has_user, is_disabled
from wsgigate.django.middleware import environ_of, set_fields
from wsgigate.django.settings import project
from wsgigate.http.problem import Problem, Refusal, Refuse, answer_with, refused
from wsgigate.http.wsgi import ExcInfo, Headers, client_address, close_body
from wsgigate.middleware.limiter import LimitedViews, LimitOutcome, ViewLimit
from wsgigate.rules.algorithms import QuotaSpec
from wsgigate.rules.quota import Quota

__all__ = ["UNSAFE", "RequiresMixin", "limit", "problem_response", "requires"]

V = TypeVar("V", bound=Callable[..., Any])

UNSAFE = ("DELETE", "PATCH", "POST", "PUT")
"""The methods that change something, for *methods* of :func:`limit`."""

LimitRate: TypeAlias = "QuotaSpec | Callable[[str, Any], Any]"
"""A quota, or a function of the group and the request that returns one, None for no limit."""

LimitKey: TypeAlias = "str | Callable[[str, Any], object]"
"""The name of a key, or a function of the group and the request that returns its value."""


def problem_response(
    problem: Problem,
    environ: WSGIEnvironment,
    *,
    fields: Headers | None = None,
    refuse: Refuse = answer_with,
) -> HttpResponse:
    """Return Django's response with *problem*, as a middleware of the package responds.

    :param fields: Further fields of the response; *problem* has its own.
    :param refuse: Turns *problem* into the WSGI app that responds with it.
    """
    started: list[tuple[str, Headers]] = []

    def start(status: str, headers: Headers, exc_info: ExcInfo | None = None) -> Any:
        started[:] = [(status, headers)]

    body = refuse(problem)(environ, start)
    content = b"".join(body)
    close_body(body)
    [(status, headers)] = started
    code, _, reason = status.partition(" ")
    response = HttpResponse(content, status=int(code), reason=reason)
    set_fields(response, headers)
    _add_fields(response, fields or [])
    return response


def _add_fields(response: Any, fields: Headers) -> None:
    """Add *fields*; an inner limit has added those of all limits, so what is there stays."""
    for name, value in fields:
        if name not in response:
            response[name] = value


# Who may call a view.


def requires(
    *scopes: str,
    roles: Sequence[str] = (),
    groups: Sequence[str] = (),
    claims: RequiredClaims = (),
    policy: Policy | None = None,
    user: bool = False,
    roles_from: Sequence[str] = ROLES,
    groups_from: Sequence[str] = GROUPS,
    realm: str = "api",
    resource_metadata: str | None = None,
    refuse: Refuse = answer_with,
) -> Callable[[V], V]:
    """Return a decorator that lets only verified callers that satisfy the rule call a view.

    ``@requires()`` alone requires a verified caller. Without one the response is a 401 with a
    ``WWW-Authenticate`` challenge; to a caller that lacks something it is a 403 (RFC 6750).

    :param scopes: Required scopes, all of them.
    :param roles: The caller needs one of these roles.
    :param groups: The caller needs to be in one of these groups.
    :param claims: Required claims: a list of paths, or a table of paths and values.
    :param policy: A function of the identity and the ``RequestFacts``.
    :param user: Whether the caller must be a user of the project, which ``IdentityMiddleware``
        finds. An inactive user is rejected in any case.
    :param roles_from: The paths of the claims that hold roles.
    :param groups_from: The paths of the claims that hold groups.
    :param realm: The name of the protected area, in ``WWW-Authenticate``.
    :param resource_metadata: The URL of the metadata of this resource (RFC 9728).
    :param refuse: Turns a :class:`~wsgigate.Problem` into the WSGI app that responds with it, such
        as ``render_refusals()``.
    :raises ValueError: An argument is invalid; the message names it.
    """
    if len(scopes) == 1 and callable(scopes[0]):
        raise TypeError("requires is called: write @requires() above the view")
    rule = AuthorizationRule(
        scopes=scopes, roles=roles, groups=groups, claims=claims, policy=policy
    )

    def decorate(view: V) -> V:
        access = AccessCheck(
            Authorization(
                {}, (_group_of(view), rule), roles_from=roles_from, groups_from=groups_from
            ),
            realm=realm,
            resource_metadata=resource_metadata,
        )
        check = partial(_access_response, access, user=user, refuse=refuse)
        return _guarded(view, lambda request: (check(request), []))

    return decorate


def _access_response(
    access: AccessCheck, request: Any, *, user: bool = False, refuse: Refuse = answer_with
) -> HttpResponse | None:
    """Return the response to a request that is rejected; None if it is allowed."""
    environ = environ_of(request, "wsgigate.django.requires")
    refusal = access.refusal(environ) or _refusal_of_user(request, user)
    if refusal is None:
        return None
    refused(environ, "requires", str(refusal))
    return problem_response(refusal.problem, environ, refuse=refuse)


def _refusal_of_user(request: Any, required: bool) -> Refusal | None:
    if is_disabled(request):
        return Refusal.of(403, "You are not allowed to do this.", "the user is inactive")
    if required and not has_user(request):
        reason = "the caller is no user of the project"
        return Refusal.of(403, "You are not allowed to do this.", reason)
    return None


class RequiresMixin:
    """A mixin for class-based views, with the arguments of :func:`requires` as attributes::

        class Orders(RequiresMixin, ListView):
            required_scopes = ["orders:read"]

    A static method ``policy(identity, facts)`` is the policy.
    """

    required_scopes: ClassVar[Sequence[str]] = ()
    required_roles: ClassVar[Sequence[str]] = ()
    required_groups: ClassVar[Sequence[str]] = ()
    required_claims: ClassVar[RequiredClaims] = ()
    required_user: ClassVar[bool] = False

    _access: ClassVar[AccessCheck]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        rule = AuthorizationRule(
            scopes=cls.required_scopes,
            roles=cls.required_roles,
            groups=cls.required_groups,
            claims=cls.required_claims,
            policy=getattr(cls, "policy", None),
        )
        cls._access = AccessCheck(Authorization({}, (_group_of(cls), rule)))

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the view, or respond with a 401 or 403."""
        inner = super().dispatch  # type: ignore[misc]
        guarded = partial(_access_response, self._access, user=self.required_user)
        if getattr(self, "view_is_async", False):
            return _dispatch_async(guarded, inner, request, *args, **kwargs)
        return guarded(request) or inner(request, *args, **kwargs)


async def _dispatch_async(check: Any, inner: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    response = await sync_to_async(check)(request)
    return response if response is not None else await inner(request, *args, **kwargs)


# How often a view may be called.

_REQUEST = "wsgigate.django.limited"
"""The request that a limit counts, for its functions of the request."""


def limit(
    rate: LimitRate,
    *,
    key: LimitKey | Sequence[LimitKey] = "address",
    methods: str | Collection[str] | None = None,
    block: bool = True,
    group: str | None = None,
    refuse: Refuse = answer_with,
    **options: Any,
) -> Callable[[V], V]:
    """Return a decorator that limits how often a view is called, exact across workers.

    A request over the quota gets a 429 with ``Retry-After``; every response has the ``RateLimit``
    fields. ``request.limited`` says whether a limit of the view was exceeded.

    :param rate: The quota, as for a :class:`~wsgigate.Limiter`, such as ``"5/m"``; or a function of
        the group and the request that returns one, None for no limit, or its dotted path.
    :param key: Identifies the caller: a name as for a Limiter, such as ``"address"`` or
        ``"subject|address"``; ``"ip"``; ``"user"`` for ``request.user``; ``"user_or_ip"``;
        ``"get:NAME"``, ``"post:NAME"`` or ``"header:NAME"``; a function of the group and the
        request, or its dotted path. A list counts each combination.
    :param methods: The methods that are counted, such as ``"POST"`` or ``UNSAFE``. Default: all.
    :param block: Whether a request over the quota is rejected. Otherwise the view is called, and
        reads ``request.limited``.
    :param group: Views of the same group, quota and key count together. Default: the view's name.
    :param refuse: Turns a :class:`~wsgigate.Problem` into the WSGI app that responds with it.
    :param options: Further arguments of the Limiter, such as *store*, *algorithm*, *cost*,
        *on_store_error* and *fields*.
    :raises ValueError: An argument is invalid; the message names it.
    """
    counted = None if methods is None else _methods(methods)

    def decorate(view: V) -> V:
        name = group or _group_of(view)
        made = ViewLimit(
            _views(project()),
            _rate(rate, name),
            key=_keys(key, name),
            name=_policy_name(name),
            **options,
        )

        def check(request: Any) -> tuple[HttpResponse | None, Headers]:
            if not hasattr(request, "limited"):
                request.limited = False
            if counted is not None and request.method not in counted:
                return None, []
            outcome = _count(made, request)
            if outcome.problem is None:
                return None, outcome.fields
            request.limited = True
            if not block:
                return None, outcome.fields
            environ = environ_of(request, "wsgigate.django.limit")
            return (
                problem_response(outcome.problem, environ, fields=outcome.fields, refuse=refuse),
                [],
            )

        return _guarded(view, check)

    return decorate


def _count(made: ViewLimit, request: Any) -> LimitOutcome:
    environ = environ_of(request, "wsgigate.django.limit")
    environ[_REQUEST] = request
    try:
        return made.count(environ)
    finally:
        environ.pop(_REQUEST, None)  # avoids a reference cycle


@cache
def _views(name: str) -> LimitedViews:
    """Return the views of the project *name*, which share one namespace."""
    return LimitedViews(name)


def _methods(methods: str | Collection[str]) -> frozenset[str]:
    found = frozenset([methods] if isinstance(methods, str) else methods)
    for each in found:
        if not isinstance(each, str) or not each.isascii() or each != each.upper():
            raise ValueError(
                f'methods: expected methods in upper case such as "POST", got {each!r}'
            )
    return found | {"HEAD"} if "GET" in found else found


def _rate(rate: Any, group: str) -> Any:
    if isinstance(rate, str) and _DOTTED.fullmatch(rate):
        rate = _imported("rate", rate)
    if not callable(rate) or isinstance(rate, Quota):
        return rate

    def chosen(environ: WSGIEnvironment) -> Any:
        found = rate(group, environ[_REQUEST])
        if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], int):
            return Quota(*found)
        return found

    return chosen


def _keys(key: Any, group: str) -> Any:
    """Return *key* for a Limiter: functions of the request become functions of ``environ``."""
    if isinstance(key, list | tuple):
        return [_keys(each, group) for each in key]
    if callable(key):
        return lambda environ: key(group, environ[_REQUEST])
    if not isinstance(key, str):
        raise ValueError(f"key: expected a name, a function or a list of these, got {key!r}")
    kind, _, name = key.partition(":")
    if key == "ip":
        return "address"
    if key in ("user", "user_or_ip"):
        return _user_key
    if kind in ("get", "post") and name:
        return _form_key(kind.upper(), name)
    if _DOTTED.fullmatch(key):
        return _keys(_imported("key", key), group)
    return key


_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
"""The dotted path of a function."""


def _user_key(environ: WSGIEnvironment) -> str:
    """Return the key of ``request.user``, or of the address for an anonymous one."""
    request = environ[_REQUEST]
    return f"user {request.user.pk}" if has_user(request) else f"address {client_address(environ)}"


def _form_key(kind: str, name: str) -> Callable[[WSGIEnvironment], str]:
    """Return a key function of a value of the query or the form, hashed as it may be a secret."""

    def key(environ: WSGIEnvironment) -> str:
        value = getattr(environ[_REQUEST], kind).get(name, "")
        return sha256(value.encode("utf-8", "replace")).hexdigest()[:32]

    return key


def _imported(argument: str, path: str) -> Any:
    try:
        found = import_string(path)
    except ImportError as error:
        raise ValueError(f"{argument}: {error}") from error
    if not callable(found):
        raise ValueError(f"{argument}: {path} is not a function")
    return found


# What both decorators share.


def _group_of(view: Any) -> str:
    """Return the name of a view, by which it is known in the log and counts."""
    view = unwrap(view)
    return f"{view.__module__}.{view.__qualname__}"


def _policy_name(group: str) -> str:
    """Return the name of a limit for clients: that of the view, without the project's modules."""
    last = re.sub(r"[^A-Za-z0-9_-]+", "-", group.rpartition(".")[2]).strip("-") or "view"
    return f"{last[:40]}-{sha256(group.encode()).hexdigest()[:8]}"


def _guarded(view: V, check: Callable[[Any], tuple[HttpResponse | None, Headers]]) -> V:
    """Return *view* behind *check*, which returns a response instead of the view's, and fields."""
    if iscoroutinefunction(view):
        checked = sync_to_async(check)

        async def guarded_async(request: Any, *args: Any, **kwargs: Any) -> Any:
            response, fields = await checked(request)
            if response is None:
                response = await view(request, *args, **kwargs)
                _add_fields(response, fields)
            return response

        return wraps(view)(guarded_async)  # type: ignore[return-value]

    def guarded(request: Any, *args: Any, **kwargs: Any) -> Any:
        response, fields = check(request)
        if response is None:
            response = view(request, *args, **kwargs)
            _add_fields(response, fields)
        return response

    return wraps(view)(guarded)  # type: ignore[return-value]
