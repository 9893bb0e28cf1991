"""Bulkheads: limits of a service's requests in flight in one worker, fixed or by fair shares.

Theory of operation of the shares. :class:`ThreadShareRules` decides.

The rule is the dynamic threshold of switches that share one buffer among many ports: a service may
hold a fixed multiple of the free threads. So one busy service gets all but the *reserve*, a second
one gets most of the rest, and each service that hangs leaves less to the next, but never nothing.
The rule does not need to know which services hang.

A request above the threshold is not rejected at once. It waits in its thread, as it would wait for
a thread in the server's queue: a burst of quick requests is over in a moment. It is rejected only
when three conditions hold: no other thread is free, so that it keeps other services waiting; most
requests of its service have been in flight for long, so that the wait will not be short; and its
service occupies more threads than an equal share, waiting requests included. A service that others
have crowded out waits, but is not rejected at once.

Rules that must hold:

- All state changes under one lock. It is held for a few steps and never while waiting for or waking
  a thread, so it may be a lock that was made before gevent patched ``threading``.
- A waiting request never takes a slot itself: the request that releases a slot assigns it to the
  longest-waiting request of the service that holds the fewest. So requests of one service are
  served in order.
- A waiting thread counts as taken when deciding whether other services find a thread, but not when
  deciding how many a service may hold; otherwise waiting requests would block each other.
- A request that takes the last thread rejects those that wait for a slow service.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Protocol

from wsgigate.http.problem import Problem, Refusal
from wsgigate.rules.arguments import checked
from wsgigate.runtime import fork

__all__ = [
    "FULL",
    "Admission",
    "Bulkhead",
    "Compartment",
    "Slot",
    "ThreadShareRules",
    "ThreadShares",
]

FULL = Problem(
    503,
    "Service temporarily unavailable",
    extensions={"error": "Too many requests in flight"},
    headers=(("Retry-After", "1"),),
)


class Slot(Protocol):
    """A request's slot in a compartment."""

    def answered(self) -> None:
        """Record that the response has begun."""

    def tunnelled(self, lent: bool = False) -> None:
        """Record that the request has become a WebSocket, which may last long.

        :param lent: Whether the server has started one more thread in place of the one it holds.
        """

    def leave(self) -> None:
        """Release the slot."""


class Compartment(Protocol):
    """Limits the requests of one service in flight in this worker."""

    def enter(self) -> Slot:
        """Return a slot for one more request.

        :raises Refusal: The compartment is full; carries the client's response.
        """

    def status(self) -> dict[str, int]:
        """Return the members for ``/services``."""


@checked
class Bulkhead:
    """A fixed limit of a service's requests in flight in this worker.

    Requests above the limit are rejected at once. A request holds its slot until its response has
    ended, including retries and the waits between them.

    :param most: The maximum number of requests in flight, at least 1.
    :ivar in_flight: The number of requests in flight.
    :ivar refused: The number of requests rejected so far.
    :raises ValueError: *most* is less than 1 or not an integer.
    """

    def __init__(self, most: int) -> None:
        check_most(most)
        self.most = most
        self.in_flight = 0
        self.refused = 0
        self._lock = threading.Lock()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Reset the counts: the requests in flight are the parent's."""
        self._lock = threading.Lock()
        self.in_flight = self.refused = 0

    def enter(self) -> Slot:
        """Take a slot; the slot is the bulkhead itself.

        :raises Refusal: The bulkhead is full; carries the client's response.
        """
        with self._lock:
            if self.in_flight < self.most:
                self.in_flight += 1
                return self
            self.refused += 1
        raise full(self.most)

    def answered(self) -> None:
        """Do nothing: a fixed limit does not depend on response times."""

    def tunnelled(self, lent: bool = False) -> None:
        """Do nothing: a WebSocket counts like any other request."""

    def leave(self) -> None:
        """Release a slot."""
        with self._lock:
            self.in_flight -= 1

    def status(self) -> dict[str, int]:
        """Return the members for ``/services``."""
        return {"inFlight": self.in_flight, "maxInFlight": self.most, "refused": self.refused}


def check_most(most: object) -> None:
    """Raise ValueError unless *most* is an integer of at least 1."""
    if type(most) is not int or most < 1:
        raise ValueError(f"max_in_flight must be 1 or more requests, got {most!r}")


def full(most: int) -> Refusal:
    """Return the rejection of a request above a fixed limit of *most*."""
    return Refusal(FULL, f"{most} requests of the service are in flight already")


_LOOK = 0.1
"""Seconds between two checks by a waiting request of whether its service has become slow."""


# The rule of the shares: pure, with the time as an argument.


class Admission(Enum):
    """The decision about a request."""

    ENTER = "enter"
    WAIT = "wait"
    REFUSE = "refuse"


@dataclass(frozen=True, kw_only=True, slots=True)
class ThreadShareRules:
    """How many threads a service may hold, and when a request above that is rejected.

    :param threads: The threads of a worker, at least 1.
    :param services: The services that share them, at least 1.
    :param patience: The least seconds after which a request counts as slow.
    :param longest_patience: The most seconds. Within these bounds a request is slow after three
        times the usual time of its service.
    :param longest_wait: Seconds after which a waiting request is rejected in any case.
    :ivar reserve: Threads that one service leaves to the others: one for each of them, but at least
        a quarter and at most half of all threads.
    :ivar most: Threads that one service may hold while the others hold none.
    :ivar equal: An equal share of the threads, at least 1.
    :raises ValueError: An argument is out of its range; the message names it.
    """

    threads: int
    services: int
    patience: float = 1.0
    longest_patience: float = 5.0
    longest_wait: float = 5.0
    reserve: int = field(init=False)
    most: int = field(init=False)
    equal: int = field(init=False)

    def __post_init__(self) -> None:
        for name in ("threads", "services"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is a whole number of at least 1, got {value!r}")
        for name in ("patience", "longest_patience", "longest_wait"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ValueError(f"{name} is a number of seconds above 0, got {value!r}")
        if self.longest_patience < self.patience:
            raise ValueError("longest_patience is at least patience")
        reserve = min(self.threads // 2, max(self.services - 1, math.ceil(self.threads / 4)))
        object.__setattr__(self, "reserve", reserve)
        object.__setattr__(self, "most", self.threads - reserve)
        object.__setattr__(self, "equal", max(1, self.threads // self.services))

    def admits(self, held: int, in_flight: int) -> bool:
        """Return whether a service that holds *held* threads may take another one.

        :param in_flight: The threads that all services hold.
        """
        return held * self.reserve < (self.threads - in_flight) * self.most

    def patience_for(self, usual: float | None) -> float:
        """Return the seconds after which a request of a service counts as slow.

        :param usual: The usual seconds until its responses begin; ``None`` while unknown.
        """
        if usual is None:
            return self.patience
        return min(max(3 * usual, self.patience), self.longest_patience)

    def is_slow(self, began: Iterable[float], held: int, now: float, usual: float | None) -> bool:
        """Return whether more than half of a service's requests in flight are slow.

        :param began: When each of them began, the oldest first.
        :param held: The number of these requests.
        """
        middle = next(islice(began, held // 2, None), None)
        return middle is not None and now - middle > self.patience_for(usual)

    def crowds(self, occupied: int, in_flight: int, waiting: int) -> bool:
        """Return whether a service keeps others from a thread by more than its equal share.

        :param occupied: The threads that its requests occupy, the waiting ones included.
        :param in_flight: The threads that all services hold.
        :param waiting: The requests of all services that wait.
        """
        return occupied > self.equal and in_flight + waiting >= self.threads

    def decide(
        self, held: int, in_flight: int, waiting: int, *, queued: int, waited: float, slow: bool
    ) -> Admission:
        """Return the decision about a request that occupies a thread, but was not admitted yet.

        :param held: The threads that its service holds.
        :param in_flight: The threads that all services hold.
        :param waiting: The requests that wait, this one included.
        :param queued: Those of its service, this one included.
        :param waited: Seconds that it has waited.
        :param slow: Whether its service is slow: :meth:`is_slow`.
        """
        if self.admits(held, in_flight):
            return Admission.ENTER
        if waited >= self.longest_wait or (slow and self.crowds(held + queued, in_flight, waiting)):
            return Admission.REFUSE
        return Admission.WAIT


class _ThreadSlot:
    """A request's slot in the share of its service, which is the thread that it holds."""

    __slots__ = ("_ended", "_share", "began", "lent", "tunnel")

    def __init__(self, share: _Share, began: float) -> None:
        self._share = share
        self._ended = False
        self.began = began
        self.tunnel = False
        self.lent = False

    def answered(self) -> None:
        """Record that its response has begun."""
        self._share.took(self._share.shares.clock() - self.began)

    def tunnelled(self, lent: bool = False) -> None:
        """Record that it has become a WebSocket.

        :param lent: Whether the server has started one more thread in its place.
        """
        self._share.shares.tunnelled(self._share, self, lent)

    def leave(self) -> None:
        """Release the thread; a second call does nothing."""
        if not self._ended:
            self._ended = True
            self._share.shares.left(self._share, self)


class _Waiter:
    """A request that waits for a slot."""

    __slots__ = ("held", "refused", "since", "woken")

    def __init__(self, since: float) -> None:
        self.since = since
        self.held: _ThreadSlot | None = None
        self.refused = False
        self.woken = threading.Event()  # created per request, so that it is gevent's if patched


class _Share:
    """The threads that one service holds.

    :ivar usual: The moving average of the seconds until a response begins; ``None`` while unknown.
    """

    def __init__(self, shares: ThreadShares, most: int | None) -> None:
        self.shares = shares
        self.most = most
        self.refused = 0
        self.usual: float | None = None
        self.reset()

    def reset(self) -> None:
        """Reset to no requests."""
        self.held: dict[_ThreadSlot, None] = {}  # in the order in which they began
        self.waiters: deque[_Waiter] = deque()
        self.tunnels = 0
        self.refused = 0

    def enter(self) -> Slot:
        """Return a slot for one more request, after waiting if necessary.

        :raises Refusal: No slot is available; carries the client's response.
        """
        return self.shares.entered(self)

    def took(self, seconds: float) -> None:
        """Record the seconds until a response began."""
        usual = self.usual  # a race between two threads loses one of the values
        self.usual = seconds if usual is None else usual + 0.2 * (seconds - usual)

    def is_slow(self, now: float) -> bool:
        """Return whether most of its requests in flight are slow."""
        held = self.held
        return self.shares.rules.is_slow((each.began for each in held), len(held), now, self.usual)

    def status(self) -> dict[str, int]:
        """Return the members for ``/services``."""
        status = {"inFlight": len(self.held) + self.tunnels, "refused": self.refused}
        if self.most is not None:
            return {**status, "maxInFlight": self.most}
        return {**status, "maxInFlight": self.shares.rules.most, "waiting": len(self.waiters)}


class ThreadShares:
    """Fair shares of a worker's threads, so that a service that hangs leaves threads to the others.

    Requests above a service's share wait for a slot. They are rejected while no other thread is
    free, most requests of the service in flight are slow and it occupies more than an equal share,
    at the latest after ``rules.longest_wait`` seconds.

    :param rules: The number of threads and of services, and when a request is rejected.
    :param clock: Monotonic clock, in seconds.
    """

    def __init__(
        self, rules: ThreadShareRules, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rules = rules
        self.clock = clock
        self._shares: list[_Share] = []
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Reset the counts: the requests in flight are the parent's."""
        self._lock = threading.Lock()
        self._in_flight = 0
        self._waiting = 0
        for share in self._shares:
            share.reset()

    def compartment(self, most: int | None = None) -> Compartment:
        """Return the compartment of one service.

        :param most: A fixed limit instead of a share: requests above it are rejected at once. 0 for
            no limit. In either case the service's requests count as taken threads.
        :raises ValueError: *most* is negative or not an integer.
        """
        if most is not None and most != 0:
            check_most(most)
        share = _Share(self, most)
        self._shares.append(share)
        return share

    def entered(self, share: _Share) -> _ThreadSlot:
        """Return a slot for a request of *share*.

        :raises Refusal: No slot is available; carries the client's response.
        """
        now = self.clock()
        most = share.most
        woken: list[_Waiter] = []
        with self._lock:
            if most is None:
                enters = not share.waiters and self.rules.admits(len(share.held), self._in_flight)
            else:
                enters = most == 0 or len(share.held) + share.tunnels < most
            if enters:
                held = self._add(share, now)
                if self._waiting:
                    woken = self._relieve(now)
            elif most is not None:
                share.refused += 1
                raise full(most)
            else:
                waiter = self._wait(share, now)
                woken = self._relieve(now)
        for each in woken:
            each.woken.set()
        return held if enters else self._waited(share, waiter)

    def left(self, share: _Share, held: _ThreadSlot) -> None:
        """Release a thread."""
        woken: list[_Waiter] = []
        with self._lock:
            if held.tunnel:
                share.tunnels -= 1
            else:
                del share.held[held]
            if not held.lent:
                self._in_flight -= 1
            if self._waiting:
                woken = self._hand_on()
        for each in woken:
            each.woken.set()

    def tunnelled(self, share: _Share, held: _ThreadSlot, lent: bool) -> None:
        """Count a thread as one that a WebSocket holds, or as free if another took its place."""
        with self._lock:
            del share.held[held]
            held.tunnel = True
            share.tunnels += 1
            if lent:
                held.lent = True
                self._in_flight -= 1
            woken = self._hand_on() if self._waiting else []
        for each in woken:
            each.woken.set()

    def _add(self, share: _Share, now: float) -> _ThreadSlot:
        held = _ThreadSlot(share, now)
        share.held[held] = None
        self._in_flight += 1
        return held

    def _wait(self, share: _Share, now: float) -> _Waiter:
        slow = share.is_slow(now)
        decision = self.rules.decide(
            len(share.held),
            self._in_flight,
            self._waiting + 1,
            queued=len(share.waiters) + 1,
            waited=0.0,
            slow=slow,
        )
        if decision is Admission.REFUSE:
            share.refused += 1
            raise self._refusal()
        waiter = _Waiter(now)
        share.waiters.append(waiter)
        self._waiting += 1
        return waiter

    def _waited(self, share: _Share, waiter: _Waiter) -> _ThreadSlot:
        until = waiter.since + self.rules.longest_wait
        while True:
            waiter.woken.wait(min(_LOOK, max(0.0, until - self.clock())))
            with self._lock:
                if waiter.held is not None:
                    return waiter.held
                if not waiter.refused:
                    now = self.clock()
                    decision = self.rules.decide(
                        len(share.held),
                        self._in_flight,
                        self._waiting,
                        queued=len(share.waiters),
                        waited=now - waiter.since,
                        slow=share.is_slow(now),
                    )
                    if decision is not Admission.REFUSE:
                        continue
                    self._send_back(share, waiter)
            raise self._refusal()

    def _send_back(self, share: _Share, waiter: _Waiter) -> None:
        share.waiters.remove(waiter)
        self._waiting -= 1
        share.refused += 1
        waiter.refused = True

    def _hand_on(self) -> list[_Waiter]:
        """Assign free slots to waiting requests; return the waiters to wake."""
        woken: list[_Waiter] = []
        now = self.clock()
        while self._waiting:
            share = min(
                (each for each in self._shares if each.waiters), key=lambda each: len(each.held)
            )
            if not self.rules.admits(len(share.held), self._in_flight):
                break  # services that hold more may not either
            waiter = share.waiters.popleft()
            self._waiting -= 1
            waiter.held = self._add(share, now)
            woken.append(waiter)
        return woken

    def _relieve(self, now: float) -> list[_Waiter]:
        """Reject waiting requests of slow services if no thread is free; return those to wake.

        The request that began to wait last is rejected first: the others are closer to a slot.
        """
        woken: list[_Waiter] = []
        for share in self._shares:
            if not share.waiters or not share.is_slow(now):
                continue
            while share.waiters and self.rules.crowds(
                len(share.held) + len(share.waiters), self._in_flight, self._waiting
            ):
                waiter = share.waiters[-1]
                self._send_back(share, waiter)
                woken.append(waiter)
        return woken

    def _refusal(self) -> Refusal:
        return Refusal(
            FULL,
            f"the service is slow and holds its share of the worker's {self.rules.threads} "
            "threads, and no other thread is free",
        )
