"""A limit of concurrent requests per caller, counted across all workers.

Theory of operation. A request in flight holds a slot, which is a lease in the store: 8 random bytes
and an expiry time. The state of a caller is the list of its leases, changed only by the store's
atomic update. These rules hold:

- A slot is free again at the latest one lease time after its worker died. Nothing else frees it
  then, so leases are short (15 s), and each worker renews its own every quarter of a lease time for
  as long as the response lasts. Without the renewal a long response would lose its slot.
- A lease that would expire later than a new one counts as a new one. Otherwise a clock that is set
  back would keep slots occupied for as long as it was set back.
- A request releases its slot once: ``Leases.drop`` returns the store key to the first caller only.
  Exhausting the body, ``close()`` and garbage collection may all try.
- Garbage collection can interrupt any code, also code that holds a lock. So ``__del__`` takes no
  lock and does not use the store: it appends to a deque, and the next request frees the slot.
- A forked child holds no leases: its parent renews and releases them.
"""

from __future__ import annotations

import logging
import secrets
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.caller import (
    OTHERWISE,
    Exempt,
    KeyNames,
    store_key,
)
from wsgigate.http.limits import (
    QUOTA_EXCEEDED,
    CallerLimit,
    LimitFields,
    LimitStanding,
    Terms,
)
from wsgigate.http.problem import Problem, Refuse, answer_with, refused
from wsgigate.http.wsgi import ExcInfo, Headers, client_address, close_body, is_preflight
from wsgigate.rules.arguments import OneOf, Range, Seconds, checked
from wsgigate.rules.quota import Verdict
from wsgigate.runtime import fork
from wsgigate.runtime.logs import ThrottledLog
from wsgigate.runtime.threads import ScheduledCall, Timer
from wsgigate.store import Store, StoreError, removed
from wsgigate.store.open import OpenedStore, resettable
from wsgigate.telemetry.decisions import LimitDecisions

__all__ = ["ID_BYTES", "LARGEST", "Concurrency", "ConcurrencyLimiter", "Leases"]


# The leases of this process, and the one thread that renews them.

_lease_log = logging.getLogger("wsgigate.leases")

_TIMER = Timer(threads=1)
"""Renews the leases of all limiters. Other scheduled calls do not wait for their stores."""


class Leases:
    """The leases that one limiter holds in this process; a thread renews them.

    A forked child does not hold the leases of its parent.

    :param renew: ``renew(place, leases)`` extends the leases under one store key. Called in a
        thread.
    :param every: Seconds between two renewals; a lease is first renewed when it has been held for
        at least half of that.
    :param clock: Returns a monotonic time in seconds.
    :param timer: Calls :meth:`renew`.
    """

    def __init__(
        self,
        renew: Callable[[str, list[bytes]], object],
        every: float,
        clock: Callable[[], float],
        timer: Timer = _TIMER,
    ) -> None:
        self._renew = renew
        self._every = every
        self._clock = clock
        self._timer = timer
        self._renewed = clock()
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Drop all leases: they belong to the requests of the parent."""
        self._held: dict[bytes, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._next: ScheduledCall | None = None
        self._stopped = False

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, lease: bytes, place: str) -> None:
        """Renew *lease*, which is under the store key *place*, from now on."""
        self._held[lease] = (place, self._clock())
        if self._next is None or not self._timer.running:
            self._stopped = False
            self._schedule(self._every)

    def drop(self, lease: bytes) -> str | None:
        """Stop renewing *lease*; return its store key, or None if it was dropped already.

        Takes no lock: a garbage collection may call it at any point.
        """
        held = self._held.pop(lease, None)
        return None if held is None else held[0]

    def stop(self) -> None:
        """Stop renewing until the next lease is held."""
        with self._lock:
            self._stopped = True
            if self._next is not None:
                self._next.cancel()
                self._next = None

    def renew(self) -> float:
        """Renew the leases that are due; return the seconds until the next renewal."""
        now = self._clock()
        wait = self._renewed + self._every - now
        if wait > 0:
            return wait
        self._renewed = now
        places: dict[str, list[bytes]] = {}
        for lease, (place, since) in list(self._held.items()):
            if since <= now - self._every / 2:
                places.setdefault(place, []).append(lease)
        for place, leases in places.items():
            try:
                self._renew(place, leases)
            except Exception:  # the other leases must still be renewed
                _lease_log.exception("leases could not be renewed")
        return self._every

    def forget_all(self) -> None:
        """Drop all leases."""
        self._held.clear()

    def _schedule(self, seconds: float) -> None:
        with self._lock:
            if self._next is not None:
                self._next.cancel()
            self._next = None if self._stopped else self._timer.after(seconds, self._run)

    def _run(self) -> None:
        wait = self.renew()
        self._next = None
        if self._held:  # in this order, as hold() stores the lease first and looks for a call then
            self._schedule(wait)


# The decision: a pure function of the caller's leases, the time and the request.

ID_BYTES = 8

_LEASE = struct.Struct(">8sd")

LARGEST = 4000
"""Maximum number of leases that fit into a value of the store, 64 KiB."""


class Concurrency:
    """Allow *limit* concurrent requests.

    :param limit: Number of slots, 1 to 4000.
    :param lease: Seconds after which a slot is free again if its lease is not renewed.
    :raises ValueError: An argument is out of range; the message names it.
    """

    def __init__(self, limit: int, lease: float) -> None:
        if limit.__class__ is not int or not 1 <= limit <= LARGEST:
            raise ValueError(f"limit: a whole number of 1 to {LARGEST}, not {limit!r}")
        if (
            isinstance(lease, bool)
            or not isinstance(lease, int | float)
            or not 0.1 <= lease <= 3600
        ):
            raise ValueError(f"lease: 0.1 to 3600 seconds, not {lease!r}")
        self.limit = limit
        self.lease = float(lease)

    def acquire(
        self, old: bytes | None, now: float, lease: bytes
    ) -> tuple[bytes | None, float, Verdict]:
        """Decide on a request that starts *now*.

        :param old: The caller's state.
        :param lease: The identifier of its lease: 8 unique bytes.
        :returns: The new state, its time to live in seconds, and the verdict. ``retry_after`` of
            the verdict is the time until the first lease expires if it is not renewed.
        """
        held, changed = self._live(old, now)
        allowed = len(held) < self.limit
        if allowed:
            held[lease] = now + self.lease
            changed = True
        ends = min(held.values()) - now
        return (
            _written(held) if changed else old,
            self._needed(held, now),
            Verdict(
                allowed, self.limit, max(0, self.limit - len(held)), 0.0, 0.0 if allowed else ends
            ),
        )

    def release(
        self, old: bytes | None, now: float, lease: bytes
    ) -> tuple[bytes | None, float, None]:
        """Free the slot of *lease*, if it has not expired."""
        held, changed = self._live(old, now)
        if held.pop(lease, None) is None and not changed:
            return old, self._needed(held, now), None
        return _written(held), self._needed(held, now), None

    def renew(
        self, old: bytes | None, now: float, leases: Collection[bytes]
    ) -> tuple[bytes | None, float, None]:
        """Extend *leases*, whose requests are still in flight.

        A lease that has expired, for example while its worker was suspended, is restored.
        """
        held, _ = self._live(old, now)
        held.update(dict.fromkeys(leases, now + self.lease))
        while len(held) > LARGEST:
            del held[next(iter(held))]
        return _written(held), self._needed(held, now), None

    def held(self, old: bytes | None, now: float) -> int:
        """Return the number of slots that are held at *now*."""
        return len(self._live(old, now)[0])

    def _live(self, old: bytes | None, now: float) -> tuple[dict[bytes, float], bool]:
        """Return the leases that have not expired, and whether they differ from *old*."""
        held: dict[bytes, float] = {}
        if old is None or len(old) % _LEASE.size:
            return held, old is not None
        latest = now + self.lease
        changed = False
        for lease, ends in _LEASE.iter_unpack(old):
            if ends > latest:  # the clock was set back
                ends, changed = latest, True
            if ends > now:
                held[lease] = ends
            else:
                changed = True
        return held, changed

    def _needed(self, held: dict[bytes, float], now: float) -> float:
        return max(held.values()) - now + 0.001 if held else 0.0


def _written(held: dict[bytes, float]) -> bytes | None:
    return b"".join([_LEASE.pack(*each) for each in held.items()]) or None


_log = logging.getLogger("wsgigate.concurrency")


@checked
class ConcurrencyLimiter(CallerLimit):
    """Limit the concurrent requests of a caller, across all workers; more get a 429.

    A request holds a slot until its response has ended. Slots are leases in the store, which the
    worker renews for as long as the response lasts: those of a worker that died are free again when
    their lease expires. The attribute *enabled* can be changed as that of a :class:`Limiter`.

    :param app: The WSGI application to protect.
    :param limit: Maximum number of concurrent requests of a caller, 1 to 4000.
    :param store: Where the leases are stored: a store, or its URL. Default: a directory of this
        machine that all workers of this app share and no other app does.
    :param namespace: Separates apps that share a store: limiters with the same namespace share
        their counts. Default: derived from the file and the name of the code of *app*.
    :param key: Identifies the caller, as for a :class:`Limiter`.
    :param only: Which requests are counted, as for a :class:`Limiter`. Default: all.
    :param exempt: Which requests are not counted, as for a :class:`Limiter`.
    :param lease: Maximum time until the slots of a worker that died are free again, in seconds;
        0.1 s to one hour.
    :param preflights: Whether CORS preflight requests are counted and rejected. Default: they pass
        uncounted, as a page cannot read any response after a rejected preflight.
    :param observe: Dry run: count and log only. Requests pass and clients are not notified.
    :param enabled: Whether the limiter is active; false passes every request on.
    :param name: Name of this policy in response fields and in the store; limiters with the same
        name share their counts.
    :param fields: Rate limit fields in responses: ``["ratelimit"]`` or an empty list.
    :param on_store_error: What to do with requests while the store fails: ``"allow"`` or
        ``"refuse"`` them.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :param clock: Returns a monotonic time in seconds, for renewals and the interval between log
        records.
    :raises ValueError: An argument is invalid; the message names it.
    """

    unavailable = "The limit of requests at a time cannot be checked at the moment."

    def __init__(
        self,
        app: WSGIApplication,
        limit: Annotated[int, Range(1, LARGEST)],
        *,
        store: Store | str | None = None,
        namespace: str | None = None,
        key: KeyNames = client_address,
        only: Exempt | Mapping[str, Any] | None = None,
        exempt: Exempt | Mapping[str, Any] | None = None,
        preflights: bool = False,
        lease: Seconds = 15.0,
        observe: bool = False,
        enabled: bool = True,
        name: str = "concurrency",
        fields: Collection[Annotated[str, OneOf(("ratelimit",))]] = ("ratelimit",),
        on_store_error: Annotated[str, OneOf(("allow", "refuse"))] = "allow",
        refuse: Refuse = answer_with,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(fields, str) or not set(fields) <= {"ratelimit"}:
            raise ValueError(f'fields is ["ratelimit"] or an empty list, not {fields!r}')
        self._rule = Concurrency(limit, lease)
        self._fields = LimitFields(fields)
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
        self.limit = limit
        self._terms = (Terms.of(name, limit, 0),)
        self._late = ThrottledLog(
            _log.error,
            f"leases of the limit {name!r} cannot be renewed or released, %s times since the last "
            "such message: %s",
            clock,
        )
        self._leases = Leases(self._renew, self._rule.lease / 4, clock)
        self._forgotten: deque[tuple[str, bytes]] = deque()
        resettable(self)

    @cached_property
    def _prefix(self) -> str:
        """The prefix of the keys in the store; computed at the first use."""
        return f"concurrency/{self.name}/{self._opened.prefix}"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not self.enabled:
            return self.app(environ, start_response)
        watch = self._watch
        if watch is not None and not watch.inspect(environ):
            self._watch = None
        if self._only is not None and not self._only(environ):
            return self._exempted(environ, start_response)
        if self._exempt is not None and self._exempt(environ):
            return self._exempted(environ, start_response)
        if "HTTP_ORIGIN" in environ and self._passes_preflights and is_preflight(environ):
            return self._exempted(environ, start_response)
        key = self.key(environ)
        if key is None:
            return self._uncounted(environ, start_response)
        while self._forgotten:
            self._release_forgotten()
        place, lease = self._prefix + store_key(key), secrets.token_bytes(ID_BYTES)
        acquire = self._rule.acquire

        def change(
            old: bytes | None, now: float
        ) -> tuple[bytes | None, float, tuple[Verdict, float]]:
            new, ttl, verdict = acquire(old, now, lease)
            return new, ttl, (verdict, now)

        try:
            update = self._update or self._opened.updater()
            verdict, now = update(place, change)
        except StoreError as error:
            return self._without_store(error, environ, start_response)
        if self._update is None:
            self._update, self._opened.worked = update, True
        if self._outages.ongoing:
            self._counted_again()
        if not verdict.allowed:
            return self._reject(key, verdict, now, environ, start_response)
        self._allowed.add()
        self._leases.hold(lease, place)
        if not self._observes:
            decision = ([verdict], now, self._terms)
            start_response = self._fields.starting(start_response, environ, decision)
        response = _LeasedBody(self, lease)
        if fork.tested():
            start_response = response.watching(start_response)
        try:
            response.body = self.app(environ, start_response)
        except BaseException:
            self._release(lease)
            raise
        return response

    def standing(self, key: str) -> list[LimitStanding]:
        """Return how many slots a caller has left.

        :param key: The caller, as for :meth:`reset`.
        :raises StoreError: The store fails.
        """
        raw, now = self._opened.get(self._prefix + self.stored_key(key))
        left = max(0, self.limit - self._rule.held(raw, now))
        return [LimitStanding(self.name, "", self.limit, left, 0.0)]

    def reset(self, key: str | None = None) -> None:
        """Free the slots of a caller, or of all.

        The slots of requests whose workers are alive come back with their next renewal, if a
        single caller is reset; those of workers that died do not.

        :param key: The caller, as the key function returns it, or as :meth:`stored_key` does; None
            for all callers.
        :raises StoreError: The store fails.
        """
        if key is not None:
            self._opened.update(self._prefix + self.stored_key(key), removed)
            return
        self._leases.forget_all()
        for place, _ in list(self._opened.items(self._prefix)):
            if place[len(self._prefix) :][:1] in ("=", "#"):
                self._opened.update(place, removed)

    def close(self) -> None:
        """Stop renewing leases, and close the store if the limiter has opened it."""
        self._leases.stop()
        self._opened.close()

    def _release(self, lease: bytes) -> None:
        place = self._leases.drop(lease)
        if place is not None:
            self._free(place, lease)

    def _forget(self, lease: bytes) -> None:
        """Let the next request free the slot of *lease*.

        Takes no lock and does not use the store: a garbage collection may call it at any point.
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
            self._late.log(error)

    def _renew(self, place: str, leases: list[bytes]) -> None:
        """Extend *leases* in the store."""
        renew = self._rule.renew
        try:
            update = self._update or self._opened.updater()
            update(place, lambda old, now: renew(old, now, leases))
        except StoreError as error:
            self._late.log(error)

    def _reject(
        self,
        key: str,
        verdict: Verdict,
        now: float,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        caller = store_key(key)[1:].lstrip(OTHERWISE)
        reason = f"{caller} has {self.limit} requests in flight, the limit of {self.name!r}"
        if self._observes:
            return self._observe(reason, environ, start_response)
        self._count("rejected")
        refused(environ, "ConcurrencyLimiter", reason)
        problem = Problem(
            429,
            "Too many requests at a time! Please wait for one to end.",
            type=QUOTA_EXCEEDED,
            extensions={"retryAfter": 1, "violated-policies": [self.name]},
            headers=(("Retry-After", "1"),),
        )
        decision = ([verdict], now, self._terms)
        start = self._fields.starting(start_response, environ, decision)
        return self._refuse(problem)(environ, start)


class _LeasedBody:
    """A response that holds a slot until it is exhausted or closed, whichever is first.

    A response that is never closed, against PEP 3333, releases its slot when it is garbage
    collected. Test clients keep responses unclosed for as long as a test refers to them, so during
    a test the slot is also released when all bytes of the Content-Length have been returned.
    """

    __slots__ = ("_chunks", "_lease", "_left", "_limiter", "body")

    def __init__(self, limiter: ConcurrencyLimiter, lease: bytes) -> None:
        self.body: Iterable[bytes] = ()
        self._chunks: Iterator[bytes] | None = None
        self._left: int | None = None
        self._limiter = limiter
        self._lease = lease

    def watching(self, start_response: StartResponse) -> StartResponse:
        """Return a *start_response* that records the Content-Length."""

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
