"""Rate limits of views, by decorator.

A limit of a view decides, counts and reports by a :class:`~wsgigate.Limiter`, in the store of the
gateway; its response fields are added when Flask has the response of the view.
"""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import update_wrapper
from types import TracebackType
from typing import Any, TypeVar, overload
from wsgiref.types import WSGIEnvironment

from flask import Blueprint, Flask, Response, current_app, request

from wsgigate.flask.refusals import raise_refused
from wsgigate.flask.settings import EXTENSION, ViewSettings
from wsgigate.http.caller import KeyNames
from wsgigate.http.fields import is_token
from wsgigate.http.wsgi import LIMITS, LOGGED, Headers, Key
from wsgigate.middleware.limiter import LimitedViews, ViewLimit, reset_views
from wsgigate.rules.algorithms import QuotaSpec
from wsgigate.rules.quota import Quota
from wsgigate.store import Store
from wsgigate.store.open import open_store

__all__ = ["AppLimits", "LimitDecorator", "check_functions", "exempt", "limits_of"]

F = TypeVar("F", bound=Callable[..., Any])

_FIELDS = "wsgigate.flask.limit_fields"
_ONLY_LOOKS = "wsgigate.flask.only_looks"
_DEDUCTIONS = "wsgigate.flask.deductions"

_OVERRIDES = "wsgigate_overrides_defaults"
_EXEMPT = "wsgigate_exempt"
_COUNT = "wsgigate_limits"

_NAME = re.compile(r"[^A-Za-z0-9._:~-]+")


class LimitDecorator:
    """A rate limit of views; made by ``limit()`` and ``shared_limit()`` of the extension.

    Called with a view it returns the limited view, with a blueprint it limits all its views. Called
    without an argument it counts the current request, so it is a ``before_request`` function as
    well. As a context manager it counts a section of a view.

    The arguments are those of :meth:`.WsgiGate.limit`.
    """

    def __init__(
        self,
        quota: QuotaSpec | Callable[[], QuotaSpec | None],
        *,
        key: KeyNames | Callable[[], object] | None = None,
        methods: Sequence[str] = (),
        per_method: bool = False,
        cost: int | Callable[[], int] = 1,
        exempt_when: Callable[[], bool] | None = None,
        deduct_when: Callable[[Response], bool] | None = None,
        override_defaults: bool = True,
        error_message: str = "",
        name: str = "",
        shared: bool = False,
        observe: bool = False,
    ) -> None:
        named = isinstance(methods, (list, tuple, set, frozenset)) and all(
            isinstance(method, str) and is_token(method) for method in methods
        )
        if not named:
            raise ValueError(f'methods: expected a list such as ["POST"], not {methods!r}')
        for called, function in (("exempt_when", exempt_when), ("deduct_when", deduct_when)):
            if function is not None and not callable(function):
                raise ValueError(f"{called}: expected a function, not {function!r}")
        check_functions(
            quota=[quota], cost=[cost], exempt_when=[exempt_when], deduct_when=[deduct_when]
        )
        self._quota = quota
        self._key = key
        self._methods = frozenset(method.upper() for method in methods)
        if "GET" in self._methods:  # Flask serves HEAD by the same view
            self._methods |= {"HEAD"}
        self._per_method = per_method
        self._cost = cost
        self._exempt_when = exempt_when
        self._deduct_when = deduct_when
        self._overrides = override_defaults
        self._message = error_message
        self._name = name
        self._shared = shared
        self._observes = observe
        # a wrong argument is an error here
        self.limit(LimitedViews(__name__), open_store("memory:"), ViewSettings(), "views")

    @overload
    def __call__(self, view: None = None) -> None: ...
    @overload
    def __call__(self, view: Blueprint) -> Blueprint: ...
    @overload
    def __call__(self, view: F) -> F: ...
    def __call__(self, view: Any = None) -> Any:
        if view is None:
            if not getattr(current_app.view_functions.get(request.endpoint or ""), _EXEMPT, False):
                self.check()
            return None
        count = getattr(view, _COUNT, 0) + 1
        if not self._name:
            name = _NAME.sub("-", getattr(view, "name", getattr(view, "__name__", "view")))
            self._name = name[-56:] if count == 1 else f"{name[-56:]}-{count}"
        if isinstance(view, Blueprint):
            view.before_request(self)
            self._mark(view, count)
            return view

        def limited(*args: Any, **kwargs: Any) -> Any:
            self.check()
            return current_app.ensure_sync(view)(*args, **kwargs)

        update_wrapper(limited, view)
        self._mark(limited, count)
        return limited

    def _mark(self, view: object, count: int) -> None:
        setattr(view, _COUNT, count)
        if self._overrides:
            setattr(view, _OVERRIDES, True)

    def __enter__(self) -> LimitDecorator:
        self.check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing: a request is counted when the section begins."""

    def check(self) -> None:
        """Count the current request.

        :raises LimitExceeded: The caller has used up the quota.
        """
        found = limits_of(current_app)
        if not found.settings.limit_enabled or found.passes():
            return
        if self._methods and request.method not in self._methods:
            return
        if self._exempt_when is not None and self._exempt_when():
            return
        limit, environ = found.limit(self), request.environ
        if self._deduct_when is None:
            self._count(limit)
            return
        before = len(environ.get(LIMITS, ()))
        environ[_ONLY_LOOKS] = True
        try:
            self._count(limit)
        finally:
            del environ[_ONLY_LOOKS]
        decisions = environ.get(LIMITS, ())
        if len(decisions) == before:
            return  # the caller is exempt, or the store fails
        cost = self._cost() if callable(self._cost) else self._cost
        if cost < 0 or any(verdict[2] < cost for verdict in decisions[-1][0]):
            self._count(limit)  # which rejects the request, and consumes nothing
            return
        environ.setdefault(_DEDUCTIONS, []).append((self._deduct_when, limit, before))

    def _count(self, limit: ViewLimit) -> None:
        """Count the current request, and keep the fields for its response.

        :raises Refused: The limit rejects it.
        """
        problem, fields = limit.count(request.environ)
        if fields:
            request.environ[_FIELDS] = fields
        if problem is not None:
            request.environ[_FIELDS] = [each for each in fields if each not in problem.headers]
            if self._message and problem.status == 429:
                problem = replace(problem, detail=self._message)
            raise_refused(problem)

    def limit(
        self, views: LimitedViews, store: Store, settings: ViewSettings, namespace: str
    ) -> ViewLimit:
        """Return the limit of an app.

        :param namespace: Separates the views of apps that share a store.
        :raises ValueError: An argument of the limit is invalid; the message names it.
        """
        quota, cost = self._quota, self._cost
        if self._deduct_when is not None or callable(cost):
            fixed = cost

            def cost_of(environ: WSGIEnvironment) -> int:
                if _ONLY_LOOKS in environ:
                    return 0
                return fixed() if callable(fixed) else fixed

            if not callable(fixed) and (fixed.__class__ is not int or fixed < 1):
                raise ValueError(
                    f"cost is a whole number of at least 1, or a function, not {fixed!r}"
                )
            cost = cost_of  # type: ignore[assignment]
        return ViewLimit(
            views,
            _of_request(quota) if callable(quota) else quota,
            algorithm=settings.limit_algorithm,
            store=store,
            namespace=namespace,
            key=self._keys(settings),
            cost=cost,
            name=self._name or "view",
            fields=settings.limit_fields,
            on_store_error=settings.limit_on_store_error,
            observe=self._observes,
        )

    def _keys(self, settings: ViewSettings) -> list[Key | str]:
        keys: list[Key | str] = []
        if not self._shared:
            keys.append(_endpoint)
        if self._per_method:
            keys.append(_method)
        given: Any = settings.limit_key if self._key is None else self._key
        given = "address" if given is None else given
        given = given if isinstance(given, (list, tuple)) else [given]
        check_functions(key=given)
        for each in given:
            keys.append(_of_request(each) if callable(each) else each)
        return keys


class AppLimits:
    """The limits of the views of one app.

    :param views: Identifies the app.
    :param store: The store of the counts.
    :param namespace: Separates the counts from those of other apps in the store.
    :param filters: Functions of which each exempts the requests for which it returns true.
    :raises ValueError: A setting is invalid; the message names the key.
    """

    def __init__(
        self,
        views: LimitedViews,
        store: Store,
        namespace: str,
        settings: ViewSettings,
        filters: Sequence[Callable[[], bool]],
    ) -> None:
        self.settings = settings
        self._namespace = namespace
        self._store = store
        self._filters = filters
        self._views = views
        # weak: a view may make a decorator for each request, for a section of it
        self._limits: weakref.WeakKeyDictionary[LimitDecorator, ViewLimit]
        self._limits = weakref.WeakKeyDictionary()
        given = settings.limit_default
        quotas = [given] if isinstance(given, (str, Quota)) else given or ()
        self._defaults = [
            LimitDecorator(quota, name="default" if number == 1 else f"default-{number}")
            for number, quota in enumerate(quotas, 1)
        ]
        for limit in (*self._defaults, LimitDecorator("1/s")):  # one more, for the other settings
            limit.limit(views, store, settings, namespace)

    def limit(self, decorator: LimitDecorator) -> ViewLimit:
        """Return the limit that *decorator* has in this app."""
        made = self._limits.get(decorator)
        if made is None:
            new = decorator.limit(self._views, self._store, self.settings, self._namespace)
            made = self._limits.setdefault(decorator, new)
        return made

    def passes(self) -> bool:
        """Return whether a filter exempts the current request."""
        return any(each() for each in self._filters)

    def before_request(self) -> None:
        """Count the current request by the default limits, if its view has no limits of its own."""
        if not self._defaults or request.endpoint is None:
            return
        view = current_app.view_functions.get(request.endpoint)
        blueprints = [current_app.blueprints[name] for name in request.blueprints]
        marked = [view, *blueprints]
        if any(getattr(each, mark, False) for each in marked for mark in (_OVERRIDES, _EXEMPT)):
            return
        if request.endpoint.rpartition(".")[2] == "static":
            return
        for limit in self._defaults:
            limit.check()

    def after_request(self, response: Response) -> Response:
        """Consume what is consumed only after the response, and add the response fields."""
        environ = request.environ
        for deducts, limit, place in environ.pop(_DEDUCTIONS, ()):
            if deducts(response):
                _deduct(limit, environ, place)
        fields: Headers = environ.pop(_FIELDS, [])
        for name, _ in fields:
            response.headers.remove(name)
        response.headers.extend(fields)
        return response

    def reset(self) -> None:
        """Reset the counts of all limits, also of those that only other processes have counted.

        :raises StoreError: The store fails.
        """
        reset_views(self._store, self._namespace)


def limits_of(app: Flask) -> AppLimits:
    """Return the limits of *app*.

    :raises RuntimeError: It has no extension.
    """
    state = app.extensions.get(EXTENSION)
    if state is None:
        raise RuntimeError(
            f"limits of views need the extension: call gate.init_app(app) for {app.name!r}"
        )
    found: AppLimits = state.limits
    return found


def check_functions(**given: Sequence[object]) -> None:
    """Check that no argument is a coroutine function: what it returns would count as true.

    :param given: The values of each argument.
    :raises ValueError: One is; the message names its argument.
    """
    for called, values in given.items():
        if any(map(inspect.iscoroutinefunction, values)):
            raise ValueError(f"{called}: expected a function, not a coroutine function")


def exempt(view: Any) -> Any:
    """Return *view*, or a blueprint, without default limits."""
    setattr(view, _EXEMPT, True)
    return view


def _deduct(limit: ViewLimit, environ: WSGIEnvironment, place: int) -> None:
    """Consume the cost of a request after its response.

    :param place: The place of the decision before the view, which the one of now replaces.
    """
    # in a copy: if others have used up the quota meanwhile, this response is sent all the same
    decisions: list[Any] = environ[LIMITS]
    others = [*decisions[:place], *decisions[place + 1 :]]
    copied = {**environ, LOGGED: True, LIMITS: others}
    outcome = limit.count(copied)
    if outcome.problem is None and outcome.fields:
        decisions[:] = copied[LIMITS]
        environ[_FIELDS] = outcome.fields


def _endpoint(environ: WSGIEnvironment) -> str:
    return request.endpoint or ""


def _method(environ: WSGIEnvironment) -> str:
    return "GET" if request.method == "HEAD" else request.method


def _of_request(function: Callable[..., Any]) -> Callable[[WSGIEnvironment], Any]:
    """Return *function* as a function of ``environ``; it may have no parameter, as Flask's have."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function in C
        return function
    required = [
        each
        for each in parameters
        if each.default is each.empty
        and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    if required:
        return function

    return lambda environ: function()
