"""Hedged requests: when the first attempt is slow, a second one is sent to another instance.

The thread that serves the request runs the first attempt itself, so a fast response costs only a
scheduled call that is cancelled. The winning attempt aborts the others by shutting down their
sockets, which wakes the threads that wait for them.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import TypeAlias
from wsgiref.types import WSGIEnvironment

import requests

from wsgigate.http.bodies import has_body
from wsgigate.http.problem import Refusal
from wsgigate.http.wsgi import INSTANCE
from wsgigate.proxy.disconnect import TICK, ClientWatch, shut
from wsgigate.proxy.pool import InstanceLease, Member
from wsgigate.proxy.request import Outgoing
from wsgigate.proxy.response import Unanswered
from wsgigate.rules.retry import Delays, HedgeRules, hedgeable
from wsgigate.runtime import fork
from wsgigate.runtime.threads import TIMER, ScheduledCall, Timer

__all__ = [
    "AttemptResult",
    "Hedge",
    "HedgedAttempt",
    "Race",
]

AttemptResult: TypeAlias = tuple[requests.Response, Outgoing, InstanceLease]
"""The response that counts, its body unread; its request; the lease of its instance."""

RunAttempt: TypeAlias = Callable[
    [WSGIEnvironment, InstanceLease, int, ClientWatch], tuple[requests.Response, Outgoing]
]
LeaseForHedge: TypeAlias = Callable[[WSGIEnvironment, tuple[Member, ...]], InstanceLease | None]


class Hedge:
    """When the requests of a service are hedged; shared by all of its forwarders.

    :param rules: The delay and the number of hedged attempts.
    :param timer: Starts the hedged attempts.
    :param clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        rules: HedgeRules,
        *,
        timer: Timer = TIMER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules = rules
        self.timer = timer
        self.clock = clock
        self._lock = threading.Lock()
        self._delays = None if rules.quantile is None else Delays(rules.quantile)
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Replace the lock, which a thread of the parent may hold."""
        self._lock = threading.Lock()

    def applies(self, environ: WSGIEnvironment) -> bool:
        """Return whether the request of *environ* may be sent to several instances at once."""
        return hedgeable(environ["REQUEST_METHOD"], has_body(environ))

    def after(self) -> float | None:
        """Return the seconds before a hedged attempt; ``None`` while too few are measured."""
        if self._delays is None:
            return float(self.rules.after)
        with self._lock:
            return self._delays.after()

    def took(self, seconds: float) -> None:
        """Record the seconds until a response began, or a lower bound of them."""
        if self._delays is not None:
            with self._lock:
                self._delays.add(seconds)


class HedgedAttempt(ClientWatch):
    """The abort signal of one of several attempts: another one won, or the client disconnected.

    :ivar aborted: Whether it was aborted.
    """

    __slots__ = ("_follows", "aborted")

    def __init__(self) -> None:
        super().__init__(None, lambda watch: None)
        self.aborted = False
        self._follows: ClientWatch | None = None

    @property
    def gone(self) -> bool:
        """Whether its response is no longer needed."""
        return self.aborted or (self._follows is not None and self._follows.gone)

    @gone.setter
    def gone(self, gone: bool) -> None:
        pass  # derived from the other attributes

    def set_upstream(self, upstream: socket.socket | None) -> bool:
        """Set the attempt's upstream socket; return whether its response is still needed."""
        with self._lock:
            self._upstream = upstream
            if self.aborted:
                shut(upstream)
            elif self._follows is not None:
                self._follows.set_upstream(upstream)
            return not self.aborted

    def abort(self) -> None:
        """Abort the attempt; the thread that waits for its response wakes."""
        with self._lock:
            self.aborted = True
            shut(self._upstream)

    def follow(self, client: ClientWatch) -> None:
        """Abort the attempt when *client* disconnects."""
        with self._lock:
            self._follows = client
            client.set_upstream(self._upstream)


class Race:
    """The concurrent attempts of one request; the first response that is no failure wins.

    A failure does not win while another attempt is in flight; hedging would otherwise turn slow
    responses into failed ones.

    :param hedge: The delay and the timer.
    :param run: Runs an attempt, given an environ, a lease, the number of the attempt and its
        abort signal.
    :param lease: Leases an instance for a hedged attempt, excluding those already tried;
        returns ``None`` when no other attempt may be made.
    :param is_failure: Returns whether a response with that status is a failure.
    :param count: Called at the end of each hedged attempt: ``won``, ``lost`` or ``failed``.
    """

    def __init__(
        self,
        hedge: Hedge,
        run: RunAttempt,
        lease: LeaseForHedge,
        is_failure: Callable[[int], bool],
        count: Callable[[str], object],
    ) -> None:
        self._hedge = hedge
        self._run_attempt = run
        self._lease = lease
        self._is_failure = is_failure
        self._count = count
        self._changed = threading.Condition()
        self._attempts: list[HedgedAttempt] = []
        self._members: list[Member] = []
        self._running = 0
        self._over = False
        self._scheduled: ScheduledCall | None = None
        self._winner: tuple[AttemptResult, HedgedAttempt] | None = None

    @property
    def attempts(self) -> int:
        """The number of attempts so far."""
        return len(self._members)

    def winner(
        self, environ: WSGIEnvironment, lease: InstanceLease, client: ClientWatch
    ) -> AttemptResult:
        """Return the winning response.

        :param lease: The lease of the first attempt.
        :param client: Reports whether the client has disconnected.
        :raises Refusal: No attempt got a response.
        """
        hedge, attempt = self._hedge, HedgedAttempt()
        attempt.follow(client)
        self._attempts.append(attempt)
        self._members.append(lease.member)
        after = hedge.after()
        if after is not None:
            self._scheduled = hedge.timer.after(after, lambda: self._run_another(environ, after))
        result, error = None, None
        began = hedge.clock()
        try:
            result = (*self._run_attempt(environ, lease, 1, attempt), lease)
        except Unanswered as failure:
            error = failure
        except Refusal:
            if not attempt.aborted:
                self._end(None)
                raise
        except BaseException:
            self._end(None)
            raise
        if error is None:
            hedge.took(hedge.clock() - began)
        winner = self._settle(result, client)
        if winner is None:
            if result is not None:
                return result
            raise error or RuntimeError("an attempt was aborted, but no other one has won")
        if result is not None:
            _drop(result)
        found, its_attempt = winner
        its_attempt.follow(client)
        environ[INSTANCE] = found[2].instance.address
        return found

    def _settle(
        self, result: AttemptResult | None, client: ClientWatch
    ) -> tuple[AttemptResult, HedgedAttempt] | None:
        """Return the attempt that beat the first, which has ended; ``None`` if none did."""
        with self._changed:
            if result is None or self._is_failure(result[0].status_code):
                while self._winner is None and self._running and not client.gone:
                    self._changed.wait(TICK)
            return self._end(self._winner)

    def _end(
        self, winner: tuple[AttemptResult, HedgedAttempt] | None
    ) -> tuple[AttemptResult, HedgedAttempt] | None:
        """Prevent further attempts, and abort those whose response is not needed."""
        with self._changed:
            self._over = True
            scheduled, self._scheduled = self._scheduled, None
            for attempt in self._attempts[1:]:
                if winner is None or attempt is not winner[1]:
                    attempt.abort()
        if scheduled is not None:
            scheduled.cancel()
        return winner

    def _run_another(self, environ: WSGIEnvironment, after: float) -> None:
        """Run one more attempt, in another thread."""
        with self._changed:
            if self._over or self._winner is not None:
                return
            self._running += 1
            attempt = HedgedAttempt()
            self._attempts.append(attempt)
            tried = tuple(self._members)
        result: AttemptResult | None = None
        lease: InstanceLease | None = None
        won = False
        try:
            environ = environ.copy()  # INSTANCE differs per attempt
            lease = self._lease(environ, tried)
            if lease is not None:
                self._schedule_next(environ, after, lease)
                result = (
                    *self._run_attempt(environ, lease, len(tried) + 1, attempt),
                    lease,
                )
        except Refusal:
            pass  # the outcome was reported already
        finally:
            with self._changed:
                self._running -= 1
                if result is not None and not self._over and self._winner is None:
                    won = not self._is_failure(result[0].status_code)
                if won and result is not None:
                    self._winner = (result, attempt)
                    for other in self._attempts:
                        if other is not attempt:
                            other.abort()
                if lease is not None:
                    lost = attempt.aborted or result is not None
                    self._count("won" if won else "lost" if lost else "failed")
                self._changed.notify_all()
        if result is not None and not won:
            _drop(result)

    def _schedule_next(self, environ: WSGIEnvironment, after: float, lease: InstanceLease) -> None:
        """Schedule one more attempt, in case this one does not respond in time either."""
        with self._changed:
            self._members.append(lease.member)
            if len(self._members) <= self._hedge.rules.most and not self._over:
                again = lambda: self._run_another(environ, after)  # noqa: E731
                self._scheduled = self._hedge.timer.after(after, again)


def _drop(result: AttemptResult) -> None:
    response, _, lease = result
    response.close()
    lease.release()
