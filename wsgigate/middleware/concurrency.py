"""Refuse a request whose caller has too many of them under way."""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate import process
from wsgigate.leases import Leases
from wsgigate.limit_fields import QUOTA_EXCEEDED, LimitFields, Terms, check_options
from wsgigate.limit_keys import (
    OTHERWISE,
    Exempt,
    KeyNames,
    SubjectKey,
    by_address,
    exempt_of,
    kept_as,
    key_of,
    only_of,
)
from wsgigate.peer_watch import PeerWatch
from wsgigate.problem import Problem, Refuse, answer_with
from wsgigate.refusals import refused
from wsgigate.repeated import Repeated, counted_again, observing, outage
from wsgigate.rules.arguments import checked
from wsgigate.rules.concurrency import ID_BYTES, Concurrency
from wsgigate.rules.quota import Verdict
from wsgigate.store import Store, StoreError
from wsgigate.store.opened import OpenedStore
from wsgigate.store.under_test import resettable
from wsgigate.wsgi import REASON, ExcInfo, Headers, client_address, close_body, is_preflight

__all__ = ["ConcurrencyLimiter"]

_log = logging.getLogger("wsgigate.concurrency")


@checked
class ConcurrencyLimiter:
    """Refuse a request whose caller has too many under way already, wherever they are served.

    A request holds a place from here until its response has ended. The places are leases in the
    store, which the worker renews for as long as the response goes on: those of a worker that died
    are free again when they run out.

    :param app: The WSGI application to protect.
    :param limit: How many requests a caller may have under way, 1 to 4000.
    :param store: Where the leases are: a store, or the URL of one. Unless said, a folder of this
        machine that all workers of this app share and no other app does.
    :param namespace: Whose counts they are, where the store is shared: all with the same namespace
        count together. Default: those of *app*, known by the file and the name of its code.
    :param key: Names the caller, as for a :class:`Limiter`.
    :param only: Which requests are counted, if not all, as for a :class:`Limiter`.
    :param exempt: Which requests are not counted, as for a :class:`Limiter`.
    :param lease: After how many seconds, at most, the places of a worker that died are free again;
        0.1 to 3600.
    :param preflights: Whether CORS preflight requests are counted and refused. Default: they pass
        uncounted, as a page cannot read any response after a refused one.
    :param observe: Only count and log: nothing is refused, and nobody told.
    :param enabled: Whether the limiter does anything, as for a :class:`Limiter`.
    :param name: Names this policy in response fields and in the store.
    :param fields: Whether response fields tell the caller how it stands: ``"ratelimit"`` or none.
    :param on_store_error: What to do when the store fails, as for a :class:`Limiter`.
    :param refuse: Makes the answer of a refusal out of its problem.
    :param clock: Measures seconds: how long a response has been going on, and between log records.
    :raises ValueError: One of the settings is wrong; says which and how.
    """

    enabled = True

    def __init__(
        self,
        app: WSGIApplication,
        limit: int,
        *,
        store: Store | str | None = None,
        namespace: str | None = None,
        key: KeyNames = client_address,
        only: Exempt | Mapping[str, Any] | None = None,
        exempt: Exempt | Mapping[str, Any] | None = None,
        preflights: bool = False,
        lease: float = 15.0,
        observe: bool = False,
        enabled: bool = True,
        name: str = "concurrency",
        fields: Collection[str] = ("ratelimit",),
        on_store_error: str = "allow",
        refuse: Refuse = answer_with,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_options(name, on_store_error)
        if isinstance(fields, str) or not set(fields) <= {"ratelimit"}:
            raise ValueError(f'fields is ["ratelimit"] or an empty list, not {fields!r}')
        self._rule = Concurrency(limit, lease)
        self._fields = LimitFields(fields)
        self._opened = OpenedStore(store, app, namespace=namespace)
        self._update: Callable[..., Any] | None = None
        if not enabled:
            self.enabled = False
        self.app = app
        self.limit = limit
        self.name = name
        self._subject = SubjectKey(_log.warning, f"the limit {name!r}")
        self.key = key_of(key, subject=self._subject)
        self._watch = PeerWatch.of_limit(_log.warning, name, app) if by_address(key) else None
        self._only = only_of(only)
        self._exempt = exempt_of(exempt)
        self._passes_preflights = not preflights
        self._observes = observe
        self._allows_on_error = observe or on_store_error == "allow"
        self._refuse = refuse
        self._terms = (Terms.of(name, limit, 0),)
        self._outages = Repeated(_log.error, outage(name, passes=self._allows_on_error), clock)
        self._observed = Repeated(_log.warning, observing(name), clock)
        self._late = Repeated(
            _log.error,
            f"places of the limit {name!r} cannot be kept or given back, %s times since the last "
            "such message: %s",
            clock,
        )
        self._leases = Leases(self._renew, self._rule.lease / 4, clock)
        self._forgotten: deque[tuple[str, bytes]] = deque()
        resettable(self)

    @cached_property
    def _prefix(self) -> str:
        """What the keys in the store begin with; known at the first use."""
        return f"concurrency/{self.name}/{self._opened.prefix}"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not self.enabled:
            return self.app(environ, start_response)
        watch = self._watch
        if watch is not None and not watch.look(environ):
            self._watch = None
        if self._only is not None and not self._only(environ):
            return self.app(environ, start_response)
        if self._exempt is not None and self._exempt(environ):
            return self.app(environ, start_response)
        if "HTTP_ORIGIN" in environ and self._passes_preflights and is_preflight(environ):
            return self.app(environ, start_response)
        key = self.key(environ)
        if key is None:
            body = self.app(environ, start_response)
            if self.key is self._subject:
                self._subject.missed(environ)
            return body
        while self._forgotten:
            self._release_forgotten()
        place, lease = self._prefix + kept_as(key), secrets.token_bytes(ID_BYTES)
        take = self._rule.take

        def change(
            old: bytes | None, now: float
        ) -> tuple[bytes | None, float, tuple[Verdict, float]]:
            new, ttl, verdict = take(old, now, lease)
            return new, ttl, (verdict, now)

        try:
            update = self._update or self._opened.updater()
            verdict, now = update(place, change)
        except StoreError as error:
            return self._without_store(error, environ, start_response)
        if self._update is None:
            self._update = update
        if self._outages.lasts:
            self._outages.over(_log.warning, counted_again(self.name))
        if not verdict.allowed:
            return self._over(key, verdict, now, environ, start_response)
        self._leases.hold(lease, place)
        if not self._observes:
            mine = ([verdict], now, self._terms)
            start_response = self._fields.starting(start_response, environ, mine)
        response = _Response(self, lease)
        if process.tested():
            start_response = response.watching(start_response)
        try:
            response.body = self.app(environ, start_response)
        except BaseException:
            self._release(lease)
            raise
        return response

    @property
    def store_errors(self) -> int:
        """How many requests could not be counted, as the store failed."""
        return self._outages.total

    @property
    def observed(self) -> int:
        """How many requests would have been refused, were this limiter not to observe."""
        return self._observed.total

    def reset(self, key: str | None = None) -> None:
        """Free the places of a caller, or of all; requests under way hold none any more.

        :param key: The caller, as the key function names it; all callers when it is None.
        :raises StoreError: The store fails.
        """
        if key is not None:
            self._opened.update(self._prefix + kept_as(key), _nothing)
            return
        self._leases.forget_all()
        for place, _ in list(self._opened.items(self._prefix)):
            if place[len(self._prefix) :][:1] in ("=", "#"):
                self._opened.update(place, _nothing)

    def counts_in_memory(self) -> bool:
        """Return whether the places are in the memory of this process alone."""
        return self._opened.in_memory

    def close(self) -> None:
        """End the thread that renews, and close the store if it was not given."""
        self._leases.stop()
        self._opened.close()

    def _release(self, lease: bytes) -> None:
        place = self._leases.drop(lease)
        if place is not None:
            self._free(place, lease)

    def _forget(self, lease: bytes) -> None:
        """Have the place of *lease* freed by the next request.

        Takes no lock and asks no store: it may run in the middle of anything, as a part of a
        garbage collection.
        """
        place = self._leases.drop(lease)
        if place is not None:
            self._forgotten.append((place, lease))

    def _release_forgotten(self) -> None:
        try:
            place, lease = self._forgotten.popleft()
        except IndexError:  # another thread was faster
            return
        self._free(place, lease)

    def _free(self, place: str, lease: bytes) -> None:
        release = self._rule.release
        try:
            update = self._update or self._opened.updater()
            update(place, lambda old, now: release(old, now, lease))
        except StoreError as error:
            self._late.again(error)

    def _renew(self, place: str, leases: list[bytes]) -> None:
        """Keep *leases* for longer. Those that have ended meanwhile are not renewed again."""
        renew = self._rule.renew
        try:
            update = self._update or self._opened.updater()
            update(place, lambda old, now: renew(old, now, leases))
        except StoreError as error:
            self._late.again(error)

    def _over(
        self,
        key: str,
        verdict: Verdict,
        now: float,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        caller = kept_as(key)[1:].lstrip(OTHERWISE)
        reason = f"{caller} has {self.limit} requests under way, {self.name!r} has no more"
        if self._observes:
            environ[REASON] = f"only observed: {reason}"
            self._observed.again(reason)
            return self.app(environ, start_response)
        refused(environ, "ConcurrencyLimiter", reason)
        problem = Problem(
            429,
            "Too many requests at a time! Please wait for one to end.",
            type=QUOTA_EXCEEDED,
            extensions={"retryAfter": 1, "violated-policies": [self.name]},
            headers=(("Retry-After", "1"),),
        )
        mine = ([verdict], now, self._terms)
        start = self._fields.starting(start_response, environ, mine)
        return self._refuse(problem)(environ, start)

    def _without_store(
        self, error: StoreError, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        if self._update is None and not self._observes:  # it has not worked so far
            self._opened.check_outage(error, f"the limit {self.name!r} cannot be counted")
        self._outages.again(error)
        if self._allows_on_error:
            return self.app(environ, start_response)
        refused(
            environ, "ConcurrencyLimiter", f"the limit {self.name!r} cannot be counted: {error}"
        )
        problem = Problem(
            503,
            "The limit of requests at a time cannot be checked at the moment.",
            headers=(("Retry-After", "5"),),
        )
        return self._refuse(problem)(environ, start_response)


def _nothing(old: bytes | None, now: float) -> tuple[bytes | None, float, None]:
    return None, 0.0, None


class _Response:
    """A response that holds a place until it has ended: exhausted or closed, whichever is first.

    One that is never closed, against PEP 3333, loses its place when it is forgotten. Test clients
    leave responses unread and unclosed as long as a test refers to them, so during a test a
    response has ended as well when all bytes of its Content-Length have been handed on.
    """

    __slots__ = ("_chunks", "_lease", "_left", "_limiter", "body")

    def __init__(self, limiter: ConcurrencyLimiter, lease: bytes) -> None:
        self.body: Iterable[bytes] = ()
        self._chunks: Iterator[bytes] | None = None
        self._left: int | None = None
        self._limiter = limiter
        self._lease = lease

    def watching(self, start_response: StartResponse) -> StartResponse:
        """Return a *start_response* that notes how long the response is."""

        def start(
            status: str, headers: Headers, exc_info: ExcInfo | None = None
        ) -> Callable[[bytes], object]:
            lengths = [value for name, value in headers if name.lower() == "content-length"]
            self._left = int(lengths[0]) if lengths and lengths[0].isdecimal() else None
            if exc_info:
                return start_response(status, headers, exc_info)
            return start_response(status, headers)

        return start

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunks = self._chunks
        if chunks is None:
            chunks = self._chunks = iter(self.body)
        try:
            chunk = next(chunks)
        except StopIteration:
            self._limiter._release(self._lease)
            raise
        if self._left is not None:
            self._left -= len(chunk)
            if self._left <= 0:
                self._limiter._release(self._lease)
        return chunk

    def close(self) -> None:
        try:
            body, self.body = self.body, ()
            close_body(body)
        finally:
            self._limiter._release(self._lease)

    def __del__(self) -> None:
        self._limiter._forget(self._lease)
