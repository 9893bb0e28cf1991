"""Rate limiting: reject requests of a caller that has used up its quota."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, NamedTuple, TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.caller import (
    OTHERWISE,
    Exempt,
    KeyNames,
    PlanFunction,
    plan_of,
    store_key,
)
from wsgigate.http.fields import retry_after
from wsgigate.http.limits import (
    FAMILIES,
    QUOTA_EXCEEDED,
    CallerLimit,
    LimitFields,
    LimitStanding,
    Terms,
)
from wsgigate.http.problem import Problem, Refuse, answer_with, refused, status_line
from wsgigate.http.wsgi import (
    ExcInfo,
    Headers,
    address_key,
    client_address,
    is_preflight,
    peer,
)
from wsgigate.rules.algorithms import ALGORITHMS, LimitPolicy, QuotaSpec
from wsgigate.rules.arguments import OneOf, checked
from wsgigate.rules.quota import Quota, Verdict
from wsgigate.store import Store, StoreError, removed, update
from wsgigate.store.open import OpenedStore, resettable
from wsgigate.telemetry.decisions import LimitDecisions

__all__ = ["LimitOutcome", "LimitedViews", "Limiter", "ViewLimit", "reset_views"]

Chosen: TypeAlias = Callable[[WSGIEnvironment], QuotaSpec | None]

COMPILED = 1024
"""How many different quotas of a quota function are cached."""

REMEMBERED = 1024
"""For how many callers the store key of a quota is cached."""

_log = logging.getLogger("wsgigate.limiter")


@checked
class Limiter(CallerLimit):
    """Rate limiting: limit requests per caller and period; requests over the quota get a 429.

    The attribute *enabled* can be changed at any time, also on the class for all limiters that do
    not set it.

    Requests that pass because the store fails are counted in ``store_errors``. A store that is
    unusable until its configuration changes, such as a directory without permission, raises
    :class:`.MisconfiguredStore` for each request instead.

    :param app: The WSGI application to protect.
    :param quota: The number of requests per period: ``Quota(100, 900)`` or
        ``"100 per 15 minutes"``. With several, a list or ``"10/h; 100/d"``, a request must pass
        all; if one rejects it, none is charged. A function of ``environ`` returns the quota of a
        request, ``None`` for no limit.
    :param algorithm: The rate limiting algorithm: ``"token-bucket"``, ``"fixed-window"`` or
        ``"sliding-window"``. A quota per
        calendar month, day and the like is always counted by the calendar.
    :param store: Where the counts are stored: a store, or its URL. Default: a directory of this
        machine that all workers of this app share and no other app does.
    :param namespace: Separates apps that share a store: limiters with the same namespace share
        their counts. Default: derived from the file and the name of the code of *app*.
    :param key: Identifies the caller; ``None`` exempts the request. A function of ``environ``, or a
        name as in files, such as ``"subject|address"``; a list counts each combination.
    :param cost: Quota units that a request consumes: a number, or a function of ``environ``.
        0 checks without consuming. A request that costs more than the limit is always rejected.
    :param plans: Other quotas by plan name; a caller without one of these plans has *quota*.
    :param plan: The plan of a request: a function of ``environ``, ``"claim:PATH"`` or
        ``"header:NAME"``.
    :param only: Which requests are counted: a function of ``environ``, or a table of ``paths``,
        ``methods``, ``ignore_case`` and a ``rule``, all of which must match. ``paths`` match every
        spelling that an app may serve, ``/login/`` and ``//login`` for ``/login``; see
        :func:`wsgigate.http.caller.matching`. Default: all requests.
    :param exempt: Which requests are not counted: a function of ``environ``, or a table of
        ``addresses``, ``paths``, ``methods`` and a ``rule``, one of which must match.
    :param preflights: Whether CORS preflight requests are counted and rejected. Default: they pass
        uncounted, as a page cannot read any response after a rejected preflight.
    :param observe: Dry run: count and log only. Requests pass and clients are not notified.
    :param enabled: Whether the limiter is active; false passes every request on.
    :param name: Name of this policy in response fields and in the store; limiters with the same
        name share their counts.
    :param fields: Rate limit fields in responses: ``"ratelimit"``, ``"x-ratelimit"``, both or none.
        ``"x-ratelimit-epoch"`` and ``"x-ratelimit-seconds"`` are the latter with
        ``X-RateLimit-Reset`` in seconds, since 1970 or from now, instead of a time in ISO 8601.
    :param on_store_error: What to do with requests while the store fails: ``"allow"`` or
        ``"refuse"`` them.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :param clock: Returns a monotonic time in seconds, for the interval between log records.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        quota: QuotaSpec | Chosen,
        *,
        algorithm: Annotated[str, OneOf(tuple(ALGORITHMS))] = "token-bucket",
        store: Store | str | None = None,
        namespace: str | None = None,
        key: KeyNames = client_address,
        cost: int | Callable[[WSGIEnvironment], int] = 1,
        plans: Mapping[str, QuotaSpec] | None = None,
        plan: PlanFunction | str | None = None,
        only: Exempt | Mapping[str, Any] | None = None,
        exempt: Exempt | Mapping[str, Any] | None = None,
        preflights: bool = False,
        observe: bool = False,
        enabled: bool = True,
        name: str = "default",
        fields: Collection[Annotated[str, OneOf(tuple(FAMILIES))]] = ("ratelimit", "x-ratelimit"),
        on_store_error: Annotated[str, OneOf(("allow", "refuse"))] = "allow",
        refuse: Refuse = answer_with,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if algorithm not in ALGORITHMS:
            listed = ", ".join(f'"{known}"' for known in ALGORITHMS)
            raise ValueError(f"algorithm is one of {listed}, not {algorithm!r}")
        if not callable(cost) and (cost.__class__ is not int or cost < 1):
            raise ValueError(f"cost is a whole number of at least 1, or a function, not {cost!r}")
        if (plans is None) != (plan is None):
            missing, there = ("plans", "plan") if plans is None else ("plan", "plans")
            raise ValueError(
                f"{missing}: required with {there}: plans are the quotas by name, plan selects one"
            )
        self._fields = LimitFields(fields)
        self._starting = self._fields.starting
        self._opened = OpenedStore(store, app, namespace=namespace)
        decisions = LimitDecisions(name)
        super().__init__(
            app,
            self._opened,
            _log,
            key=key,
            only=only,
            exempt=exempt,
            preflights=preflights,
            observe=observe,
            enabled=enabled,
            name=name,
            on_store_error=on_store_error,
            refuse=refuse,
            clock=clock,
            count=decisions.count,
        )
        self._allowed = decisions.allowed
        self._update: Callable[..., Any] | None = None
        self._step: Callable[..., Any] | None = None
        self.quota = quota
        self._caller = peer if self.key is client_address else self.key
        self._algorithm = algorithm
        self._fixed = 1 if callable(cost) else cost
        self._cost = cost if callable(cost) else None
        self._plans = {each: self._compile(quotas) for each, quotas in (plans or {}).items()}
        self._plan = None if plan is None else plan_of(plan)
        self._chosen: Chosen | None = quota if callable(quota) else None
        self._default = None if callable(quota) else self._compile(quota)
        self._compiled = lru_cache(maxsize=COMPILED)(self._compile)
        selectors = (self._only, self._exempt, self._plan, self._chosen)
        self._selects = any(each is not None for each in selectors)
        resettable(self)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not self.enabled:
            return self.app(environ, start_response)
        counted, watch = self._default, self._watch
        if watch is not None and not watch.inspect(environ):
            self._watch = None
        if self._selects:  # most limiters have none of these
            if self._only is not None and not self._only(environ):
                return self._exempted(environ, start_response)
            if self._exempt is not None and self._exempt(environ):
                return self._exempted(environ, start_response)
            counted = self._quotas_of(environ)
        if "HTTP_ORIGIN" in environ and self._passes_preflights and is_preflight(environ):
            return self._exempted(environ, start_response)
        key = self._caller(environ)
        if key is None:
            return self._uncounted(environ, start_response)
        if counted is None:
            return self._exempted(environ, start_response)
        cost, change, step = self._fixed, counted.change, self._step
        if self._cost is not None:
            cost = self._cost(environ)
            if cost < 0 or cost > counted.most:
                return self._impossible(cost, counted, environ, start_response)
            change = counted.charging(cost)
        try:
            update = self._update
            if update is None:
                update, step = self._open()
            if step is None:
                verdicts, now = update(counted.kept(key), change)
            else:
                verdicts, now = step(counted.kept(key), counted.algorithms, cost)
        except StoreError as error:
            return self._without_store(error, environ, start_response)
        if self._update is None:
            self._update, self._step, self._opened.worked = update, step, True
        if self._outages.ongoing:
            self._counted_again()
        for verdict in verdicts:
            if not verdict[0]:
                return self._reject(verdicts, now, counted, environ, start_response)
        self._allowed.add()
        if self._observes:
            return self.app(environ, start_response)
        decision = (verdicts, now, counted.terms)
        return self.app(environ, self._starting(start_response, environ, decision))

    def reset(self, key: str | None = None) -> None:
        """Reset the counts, so that callers have their full quota again.

        Limiters of one name that share a store share the counts, and so their reset.

        :param key: The caller, as the key function returns it, such as ``"192.0.2.1"``, or as
            :meth:`stored_key` does; None for all callers. ``limiter.key(environ)`` returns the key
            of a request.
        :raises StoreError: The store fails.
        """
        if key is None or self._chosen is not None:
            ends = re.escape(self._opened.prefix)
            ends += _ANY_CALLER if key is None else re.escape(self.stored_key(key))
            _reset(self._opened, f"{self.name}/", ends)
        else:
            stored = self.stored_key(key)
            for counted in (self._default, *self._plans.values()):
                if counted is not None:
                    self._opened.update(counted.place_of(stored), removed)

    def standing(self, key: str) -> list[LimitStanding]:
        """Return what a caller has left of each quota, without charging it.

        The quotas are the default ones, and those of each plan; a function of ``environ`` that
        chooses quotas has none to be listed.

        :param key: The caller, as for :meth:`reset`.
        :raises StoreError: The store fails.
        """
        stored, found = self.stored_key(key), []
        for plan, counted in (("", self._default), *self._plans.items()):
            if counted is None:
                continue
            place = counted.place_of(stored)
            update, step = self._open()
            if step is None:
                verdicts, _ = update(place, counted.charging(0))
            else:
                verdicts, _ = step(place, counted.algorithms, 0)
            found += [
                LimitStanding(name, plan, verdict.limit, verdict.remaining, verdict.reset_after)
                for name, verdict in zip(counted.names, verdicts, strict=True)
            ]
        return found

    def close(self) -> None:
        """Close the store if the limiter has opened it."""
        self._opened.close()

    def _open(self) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
        return self._opened.updater(), getattr(self._opened.open(), "take", None)

    def _quotas_of(self, environ: WSGIEnvironment) -> _CompiledQuotas | None:
        if self._plan is not None:
            plan = self._plans.get(self._plan(environ) or "")
            if plan is not None:
                return plan
        if self._chosen is None:
            return self._default
        quotas = self._chosen(environ)
        if quotas is None:
            return None
        return self._compiled(quotas if isinstance(quotas, str | Quota) else tuple(quotas))

    def _compile(self, quotas: QuotaSpec) -> _CompiledQuotas:
        return _CompiledQuotas(
            quotas,
            algorithm=self._algorithm,
            name=self.name,
            opened=self._opened,
            cost=self._fixed,
            by_address=self.key is client_address,
        )

    def _reject(
        self,
        verdicts: Sequence[Verdict],
        now: float,
        counted: _CompiledQuotas,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        over = [place for place, verdict in enumerate(verdicts) if not verdict.allowed]
        names = [counted.terms[place].name for place in over]
        key = store_key(self.key(environ))[1:].lstrip(OTHERWISE)
        reason = f"{key} is over the quota {names[0]!r} of {counted.quotas[over[0]]}"
        if self._observes:
            return self._observe(reason, environ, start_response)
        self._count("rejected")
        refused(environ, "Limiter", reason)
        wait = retry_after(max(verdicts[place].retry_after for place in over))
        problem = Problem(
            429,
            "Too many requests! Please try again later.",
            type=QUOTA_EXCEEDED,
            extensions={"retryAfter": int(wait), "violated-policies": names},
            headers=(("Retry-After", wait),),
        )
        decision = (verdicts, now, counted.terms)
        return self._refuse(problem)(environ, self._starting(start_response, environ, decision))

    def _impossible(
        self,
        cost: int,
        counted: _CompiledQuotas,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        """Reject a request whose cost exceeds the limit, without a useless Retry-After."""
        reason = f"a cost of {cost}, of which the limit {self.name!r} allows 0 to {counted.most}"
        if self._observes:
            return self._observe(reason, environ, start_response)
        self._count("rejected")
        refused(environ, "Limiter", reason)
        problem = Problem(400, "This request has no valid cost.")
        if cost > 0:
            over = [
                terms.name
                for terms, quota in zip(counted.terms, counted.quotas, strict=True)
                if quota.limit < cost
            ]
            problem = Problem(
                429,
                f"This request counts as {cost}, and no more than {counted.most} are allowed.",
                type=QUOTA_EXCEEDED,
                extensions={"violated-policies": over},
                headers=tuple(self._fields.policies(counted.terms)),
            )
        return self._refuse(problem)(environ, start_response)


# Limits of single views. The frameworks' decorators count by a Limiter around an app that does
# nothing, and give its fields to the view's response: there is one way to count.


class LimitOutcome(NamedTuple):
    """What a limit decided about one request.

    :ivar problem: The response to a request over its quota; None if the request may pass.
    :ivar fields: The fields for the response of the view, such as ``RateLimit``.
    """

    problem: Problem | None
    fields: Headers


class LimitedViews:
    """The views of one application, in place of the app that a :class:`Limiter` wraps.

    Their limits share a namespace, and so a store. Use one object for each application.

    :param import_name: The module that identifies the application, as that of a Flask app.
    """

    def __init__(self, import_name: str) -> None:
        self.import_name = import_name

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return ()


class ViewLimit:
    """A limit of one view, exact across workers.

    :param views: The views of the application.
    :param quota: The quota, as for a :class:`Limiter`.
    :param options: Further arguments of the :class:`Limiter`, except *refuse*.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(self, views: WSGIApplication, quota: QuotaSpec | Chosen, **options: Any) -> None:
        self.limiter = Limiter(views, quota, refuse=_noted, **options)

    def count(self, environ: WSGIEnvironment) -> LimitOutcome:
        """Count the request of *environ* and return the decision.

        :raises MisconfiguredStore: The store is unusable until its configuration changes.
        """
        fields: Headers = []

        def started(status: str, headers: Headers, exc_info: ExcInfo | None = None) -> Any:
            fields[:] = headers
            return fields.append

        environ.pop(_REFUSED, None)
        self.limiter(environ, started)
        return LimitOutcome(environ.pop(_REFUSED, None), fields)


_REFUSED = "wsgigate.limiter.refused"


def _noted(problem: Problem) -> WSGIApplication:
    """Return an app that notes *problem* for :meth:`ViewLimit.count`, with the limit's fields."""

    def note(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ[_REFUSED] = problem
        start_response(status_line(problem.status), list(problem.headers))
        return ()

    return note


def reset_views(store: Store, namespace: str) -> None:
    """Reset the counts of all limits of views in *namespace*, whichever process has counted.

    :raises StoreError: The store fails.
    """
    _reset(store, "", f"{re.escape(namespace)}/{_ANY_CALLER}")


_ANY_CALLER = "[=#].*"


def _reset(store: Any, begins: str, ends: str) -> None:
    """Remove the counts whose key has the name and a slash, or neither, and ends as *ends*."""
    name = re.escape(begins) or "[^/]+/"
    # Between the name and the prefix of the app is rules.algorithms.LimitPolicy.place.
    mine = re.compile(f"limit/{name}(?:together|[^/]+/[^/]+/[^/]+)/{ends}", re.DOTALL)
    for key, _ in list(store.items(f"limit/{begins}")):
        if mine.fullmatch(key):
            update(store, key, removed)


class _CompiledQuotas(LimitPolicy):
    """Compiled quotas: the policy, the store keys and the header fields."""

    __slots__ = ("_begins", "_opened", "kept", "terms")

    def __init__(
        self,
        quotas: QuotaSpec,
        *,
        algorithm: str,
        name: str,
        opened: OpenedStore,
        cost: int,
        by_address: bool,
    ) -> None:
        super().__init__(quotas, algorithm=algorithm, name=name, cost=cost)
        self._begins = place = f"limit/{self.place}/"
        self._opened = opened

        def kept(key: str) -> str:
            return place + opened.prefix + store_key(address_key(key) if by_address else key)

        self.kept = lru_cache(maxsize=REMEMBERED)(kept)
        self.terms = tuple(
            Terms.of(called, quota.limit, quota.period)
            for called, quota in zip(self.names, self.quotas, strict=True)
        )

    def place_of(self, stored: str) -> str:
        """Return the store key of a caller, given its key in the form that the store has."""
        return self._begins + self._opened.prefix + stored
