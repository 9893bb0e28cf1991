"""Two tries at once: when the first is slow to answer, a second one at another instance.

The thread that serves the request makes the first try itself, so that a fast answer costs nothing
but a scheduled call that is cancelled. What wins breaks the others off: their sockets are shut
down, from which the threads that wait for them wake.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import TypeAlias
from wsgiref.types import WSGIEnvironment

import requests

from wsgigate.http.problem import Refusal
from wsgigate.http.wsgi import INSTANCE
from wsgigate.proxy.disconnect import TICK, Departure, shut
from wsgigate.proxy.pool import Member
from wsgigate.proxy.request import Outgoing
from wsgigate.proxy.send import Reservation, Unanswered
from wsgigate.rules.retry import Delays, HedgeRules, hedgeable
from wsgigate.runtime import fork
from wsgigate.runtime.threads import TIMER, ScheduledCall, Timer

__all__ = ["Hedge", "HedgedAttempt", "Race"]

Answer: TypeAlias = tuple[requests.Response, Outgoing, Reservation]
Ask: TypeAlias = Callable[
    [WSGIEnvironment, Reservation, int, Departure], tuple[requests.Response, Outgoing]
]
Another: TypeAlias = Callable[[WSGIEnvironment, tuple[Member, ...]], Reservation | None]


class Hedge:
    """When the requests of a service are hedged; one for all of its forwarders.

    :param rules: After how long, and how often.
    :param timer: Has the further tries made.
    :param clock: Tells the time in seconds, from any moment on.
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
        """Have a lock that no thread of the parent holds."""
        self._lock = threading.Lock()

    def applies(self, environ: WSGIEnvironment) -> bool:
        """Return whether the request of *environ* may be with several instances at once."""
        has_body = (
            environ.get("CONTENT_LENGTH") not in (None, "", "0")
            or "HTTP_TRANSFER_ENCODING" in environ
        )
        return hedgeable(environ["REQUEST_METHOD"], has_body)

    def after(self) -> float | None:
        """Return the seconds after which there is another try; ``None`` while that is not known."""
        if self._delays is None:
            return float(self.rules.after)
        with self._lock:
            return self._delays.after()

    def took(self, seconds: float) -> None:
        """Take note of how long an answer took to begin, or had not begun by then."""
        if self._delays is not None:
            with self._lock:
                self._delays.add(seconds)


class HedgedAttempt(Departure):
    """One try of several: it ends when another one wins, or when the client leaves.

    :ivar off: Whether it was broken off.
    """

    __slots__ = ("_follows", "off")

    def __init__(self) -> None:
        super().__init__(None, lambda departure: None)
        self.off = False
        self._follows: Departure | None = None

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.off or (self._follows is not None and self._follows.gone)

    @gone.setter
    def gone(self, gone: bool) -> None:
        pass  # it is known by other means

    def set_upstream(self, upstream: socket.socket | None) -> bool:
        """Say which socket the try goes by now; return whether it is still wanted."""
        with self._lock:
            self._upstream = upstream
            if self.off:
                shut(upstream)
            elif self._follows is not None:
                self._follows.set_upstream(upstream)
            return not self.off

    def break_off(self) -> None:
        """End it: whoever waits for its answer is woken."""
        with self._lock:
            self.off = True
            shut(self._upstream)

    def follow(self, client: Departure) -> None:
        """Have it end when *client* leaves."""
        with self._lock:
            self._follows = client
            client.set_upstream(self._upstream)


class Race:
    """The tries of one request that are under way at once; the first good answer counts.

    A failure does not win while another try is under way, or hedging would turn slow answers into
    bad ones.

    :param ask: Makes a try: with an environ, an instance, which of them it is, and what ends it.
    :param another: Returns a hold on an instance for a further try, without those that were asked;
        ``None`` when there is to be none.
    :param bad: Tells whether an answer with that status is a failure.
    """

    def __init__(
        self, hedge: Hedge, ask: Ask, another: Another, bad: Callable[[int], bool]
    ) -> None:
        self._hedge = hedge
        self._ask = ask
        self._another = another
        self._bad = bad
        self._changed = threading.Condition()
        self._legs: list[HedgedAttempt] = []
        self._members: list[Member] = []
        self._running = 0
        self._over = False
        self._scheduled: ScheduledCall | None = None
        self._winner: tuple[Answer, HedgedAttempt] | None = None

    def run(self, environ: WSGIEnvironment, hold: Reservation, client: Departure) -> Answer:
        """Return the answer that counts.

        :param hold: The hold on the instance of the first try.
        :param client: Tells whether the client has left.
        :raises Refusal: There is none.
        """
        hedge, leg = self._hedge, HedgedAttempt()
        leg.follow(client)
        self._legs.append(leg)
        self._members.append(hold.member)
        after = hedge.after()
        if after is not None:
            self._scheduled = hedge.timer.after(after, lambda: self._try_another(environ, after))
        answer, error = None, None
        began = hedge.clock()
        try:
            answer = (*self._ask(environ, hold, 1, leg), hold)
        except Unanswered as failure:
            error = failure
        except Refusal:
            if not leg.off:
                self._end(None)
                raise
        except BaseException:
            self._end(None)
            raise
        if error is None:
            hedge.took(hedge.clock() - began)
        winner = self._settle(answer, client)
        if winner is None:
            if answer is not None:
                return answer
            raise error or RuntimeError("a try was broken off, and nobody won")
        if answer is not None:
            _drop(answer)
        found, its_leg = winner
        its_leg.follow(client)
        environ[INSTANCE] = found[2].instance.address
        return found

    def _settle(
        self, answer: Answer | None, client: Departure
    ) -> tuple[Answer, HedgedAttempt] | None:
        """Return who has won over the first try, which has ended; ``None`` if nobody did."""
        with self._changed:
            if answer is None or self._bad(answer[0].status_code):
                while self._winner is None and self._running and not client.gone:
                    self._changed.wait(TICK)
            return self._end(self._winner)

    def _end(
        self, winner: tuple[Answer, HedgedAttempt] | None
    ) -> tuple[Answer, HedgedAttempt] | None:
        """Have no more tries made, and break off those that are not wanted any more."""
        with self._changed:
            self._over = True
            scheduled, self._scheduled = self._scheduled, None
            for leg in self._legs[1:]:
                if winner is None or leg is not winner[1]:
                    leg.break_off()
        if scheduled is not None:
            scheduled.cancel()
        return winner

    def _try_another(self, environ: WSGIEnvironment, after: float) -> None:
        """Make one more try, in a thread of its own."""
        with self._changed:
            if self._over or self._winner is not None:
                return
            self._running += 1
            leg = HedgedAttempt()
            self._legs.append(leg)
            asked = tuple(self._members)
        answer: Answer | None = None
        won = False
        try:
            environ = environ.copy()  # it tells whom it is with
            hold = self._another(environ, asked)
            if hold is not None:
                self._go_on(environ, after, hold)
                answer = (*self._ask(environ, hold, len(asked) + 1, leg), hold)
        except Refusal:
            pass  # what it tells of the instance was told
        finally:
            with self._changed:
                self._running -= 1
                if answer is not None and not self._over and self._winner is None:
                    won = not self._bad(answer[0].status_code)
                if won and answer is not None:
                    self._winner = (answer, leg)
                    for other in self._legs:
                        if other is not leg:
                            other.break_off()
                self._changed.notify_all()
        if answer is not None and not won:
            _drop(answer)

    def _go_on(self, environ: WSGIEnvironment, after: float, hold: Reservation) -> None:
        """Have one more try made if this one does not answer in time either."""
        with self._changed:
            self._members.append(hold.member)
            if len(self._members) <= self._hedge.rules.most and not self._over:
                again = lambda: self._try_another(environ, after)  # noqa: E731
                self._scheduled = self._hedge.timer.after(after, again)


def _drop(answer: Answer) -> None:
    response, _, hold = answer
    response.close()
    hold.release()
