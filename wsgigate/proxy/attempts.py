"""The tries that a request to a service is given: how they end decides whether there is another."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias
from wsgiref.types import WSGIEnvironment

import requests

from wsgigate.client.adapter import Timeout
from wsgigate.coordination.circuit import Permit
from wsgigate.discovery import Instance
from wsgigate.http.bodies import replayed
from wsgigate.http.problem import Problem, Refusal
from wsgigate.http.wsgi import INSTANCE
from wsgigate.proxy.disconnect import Departure
from wsgigate.proxy.hedging import HedgedAttempt, Race
from wsgigate.proxy.pool import FULL, InstanceLease, Member, Pool
from wsgigate.proxy.request import Outgoing
from wsgigate.proxy.resilience import Resilience
from wsgigate.proxy.send import (
    CLIENT_LEFT,
    UNSENDABLE,
    Reservation,
    Sender,
    Unanswered,
    had_begun,
    nothing_sent,
)
from wsgigate.rules.circuit import Outcome, outcome_of
from wsgigate.rules.retry import (
    Attempt,
    Deadline,
    deadline,
    read_retry_after,
    read_timeout,
    try_time,
    write_timeout,
)

__all__ = ["Answer", "AttemptRunner", "Attempts", "Make", "NO_INSTANCE", "TIMEOUT_KEY"]


# One try: an instance is picked, asked, and what came of it is told.

TIMEOUT_KEY = "HTTP_X_REQUEST_TIMEOUT"

_TIMEOUT = "X-Request-Timeout"

NO_INSTANCE = Problem(
    503,
    "Service temporarily unavailable",
    extensions={"error": "No instance available"},
    headers=(("Retry-After", "5"),),
)

Make: TypeAlias = Callable[[WSGIEnvironment, Instance], Outgoing]
"""Makes the request for an instance out of the client's."""


class AttemptRunner:
    """Asks one instance of a service at a time.

    :param pool: The service's instances.
    :param resilience: What is done when it fails.
    :param make: Makes the request for an instance.
    :param sender: Sends it.
    """

    def __init__(self, pool: Pool, resilience: Resilience, make: Make, sender: Sender) -> None:
        self._pool = pool
        self._resilience = resilience
        self._make = make
        self._sender = sender
        self._timed = resilience.timed or pool.timed

    def hold(
        self, environ: WSGIEnvironment, permit: Permit | None, failed: tuple[Member, ...]
    ) -> Reservation:
        try:
            return Reservation(self.pick(environ, failed), permit)
        except BaseException:
            if permit is not None:
                permit.done(Outcome.IGNORED)
            raise

    def pick(self, environ: WSGIEnvironment, failed: tuple[Member, ...] = ()) -> InstanceLease:
        """Return a hold on whoever is to serve the request of *environ*.

        :param failed: Those that have not.
        :raises Refusal: There is nobody.
        """
        pool = self._pool
        key = None if pool.key is None else pool.key(environ)
        stuck = None if pool.sticky is None else pool.sticky.read(environ)
        lease = pool.pick(key, failed, None if stuck is None else stuck.id)
        if lease is not None:
            return lease
        if pool.instance_limit is not None and pool.available():
            raise Refusal(FULL, "every instance has as many requests as it may have")
        raise Refusal(NO_INSTANCE, "no instance")

    def another(self, environ: WSGIEnvironment, asked: tuple[Member, ...]) -> Reservation | None:
        """Return a hold on an instance for a try beside those of *asked*, if there may be one."""
        resilience = self._resilience
        lease = self.pick(environ, asked)
        try:
            if lease.member not in asked:
                now = resilience.clock()
                permit = resilience.admit(now)
                if resilience.take(now):
                    return Reservation(lease, permit)
                if permit is not None:
                    permit.done(Outcome.IGNORED)
        except BaseException:
            lease.release()
            raise
        lease.release()
        return None

    def ask(
        self,
        environ: WSGIEnvironment,
        hold: Reservation,
        until: Deadline | None,
        number: int,
        departure: Departure,
    ) -> tuple[requests.Response, Outgoing]:
        """Return the answer of one instance; tell how long it took and what it means.

        :raises Unanswered: There is none.
        """
        resilience, pool = self._resilience, self._pool
        began, limits = 0.0, None
        try:
            environ[INSTANCE] = hold.instance.address
            request = self._make(environ, hold.instance)
            if self._timed or until is not None:
                began = resilience.clock()
            if until is not None:
                limits = self._limits(until, began)
                if TIMEOUT_KEY in environ and _TIMEOUT in request.headers:
                    request.headers[_TIMEOUT] = write_timeout(until, began)
                if number > 1:
                    request.fresh = True  # type: ignore[attr-defined]  # so not sent twice by itself
            response = self._sender.send(request, departure, limits)
            took = resilience.clock() - began if self._timed else 0.0
            outcome = outcome_of(response.status_code, resilience.failures)
            if pool.timed:
                pool.answered(hold.member, took, outcome is Outcome.FAILED)
            hold.answered(outcome, took, response.status_code)
            return response, request
        except Unanswered as error:
            if pool.timed:
                pool.answered(hold.member, resilience.clock() - began, True)
            cause = error.__cause__
            if not isinstance(cause, Exception) or self._too_short(cause, until, limits):
                hold.release()
            else:
                hold.release(cause)
            raise
        except BaseException:
            if pool.timed and type(departure) is HedgedAttempt and departure.off:
                pool.answered(hold.member, resilience.clock() - began, False)  # that long at least
            hold.release()
            raise

    def _limits(self, until: Deadline, now: float) -> Timeout:
        """Return what a try may take that begins *now*; reading the body takes what it does."""
        connect, read = self._sender.timeout
        left = max(0.001, try_time(until, now, self._resilience.per_try))
        return Timeout(min(connect, left), read, left)

    def _too_short(self, error: Exception, until: Deadline | None, limits: Timeout | None) -> bool:
        """Return whether *error* is that the client wants it sooner than the service need be."""
        if until is None or limits is None or not until.shortened:
            return False
        if not isinstance(error, requests.Timeout):
            return False
        usual = self._sender.timeout[0 if isinstance(error, requests.ConnectTimeout) else 1]
        per_try = self._resilience.per_try
        return limits.total < (usual if per_try is None else min(usual, per_try))


Answer: TypeAlias = tuple[requests.Response, Outgoing, Reservation]
"""The answer that counts, its body unread; what it answers; and the hold on who gave it."""


class Attempts:
    """Asks a service, again where that is safe, as far as it is to be asked.

    :param pool: The service's instances.
    :param resilience: What is done when it fails.
    :param make: Makes the request for an instance.
    :param sender: Sends it.
    """

    def __init__(self, pool: Pool, resilience: Resilience, make: Make, sender: Sender) -> None:
        if pool.sticky is not None and resilience.hedge is not None:
            raise ValueError("hedge is not for a service whose clients stay with an instance")
        self._asker = AttemptRunner(pool, resilience, make, sender)
        self._resilience = resilience
        self._total = sender.timeout.total

    def look(self) -> None:
        """See that the service may be asked, by one whose end will tell nothing of it.

        :raises Refusal: It may not.
        """
        permit = self._resilience.admit(self._resilience.clock())
        if permit is not None:
            permit.done(Outcome.IGNORED)

    def lease(self, environ: WSGIEnvironment) -> InstanceLease:
        """Return a hold on an instance for a request whose end tells nothing of the service.

        :raises Refusal: There is none.
        """
        bulkhead = self._resilience.bulkhead
        if bulkhead is None:
            return self._asker.pick(environ)
        place = bulkhead.enter()
        try:
            lease = self._asker.pick(environ)
        except BaseException:
            place.leave()
            raise
        lease.place = place
        return lease

    def answer(self, environ: WSGIEnvironment, departure: Departure) -> Answer:
        """Return what the service answers to the request of *environ*.

        :param departure: Tells whether the client has left.
        :raises Refusal: Nothing; carries what the client is told.
        """
        bulkhead = self._resilience.bulkhead
        if bulkhead is None:
            return self._answer(environ, departure)
        place = bulkhead.enter()  # first of all, so that one too many tells the circuit nothing
        try:
            answer = self._answer(environ, departure)
        except BaseException:
            place.leave()
            raise
        answer[2].keep(place)
        return answer

    def _answer(self, environ: WSGIEnvironment, departure: Departure) -> Answer:
        resilience = self._resilience
        rules, now = resilience.retry, resilience.clock()
        permit = resilience.admit(now)
        asked = environ.get(TIMEOUT_KEY)
        total = self._total
        until = None
        if asked is not None or resilience.per_try is not None:  # else what is usual holds
            until = deadline(now, total, read_timeout(asked) if asked else None)
        if rules is not None or resilience.hedge is not None:
            resilience.count(now)
        if rules is None:
            return self._first(environ, self._asker.hold(environ, permit, ()), until, departure)
        replay = replayed(environ, rules.buffer)
        number = 1
        failed: tuple[Member, ...] = ()
        while True:
            hold = self._asker.hold(environ, permit, failed)
            response, error = None, None
            try:
                if number == 1:
                    response, request, hold = self._first(environ, hold, until, departure)
                else:
                    response, request = self._asker.ask(environ, hold, until, number, departure)
                if response.status_code not in rules.statuses:
                    return response, request, hold
            except Unanswered as unanswered:
                error = unanswered
            if until is None:
                until = deadline(now, total)
            again = self._again(
                environ, number, until, response, error, replay is None or replay.whole
            )
            if again is None:
                if error is not None:
                    raise error
                return response, request, hold  # type: ignore[return-value]
            if response is not None:
                response.close()
                hold.release()
            wait, permit = again
            self._wait(wait, permit, departure)
            if replay is not None:
                replay.rewind()
            number += 1
            failed = (*failed, hold.member)

    def _first(
        self,
        environ: WSGIEnvironment,
        hold: Reservation,
        until: Deadline | None,
        departure: Departure,
    ) -> Answer:
        """Return the answer to the first try, or to another that was made beside it."""
        hedge = self._resilience.hedge
        if hedge is None or not hedge.applies(environ):
            return *self._asker.ask(environ, hold, until, 1, departure), hold

        def ask(
            environ: WSGIEnvironment, hold: Reservation, number: int, departure: Departure
        ) -> tuple[requests.Response, Outgoing]:
            return self._asker.ask(environ, hold, until, number, departure)

        return Race(hedge, ask, self._asker.another, self._bad).run(environ, hold, departure)

    def _bad(self, status: int) -> bool:
        """Return whether an answer with *status* is a failure, or one that is tried again after."""
        resilience = self._resilience
        retried = () if resilience.retry is None else resilience.retry.statuses
        return status in resilience.failures or status in retried

    def _again(
        self,
        environ: WSGIEnvironment,
        number: int,
        until: Deadline,
        response: requests.Response | None,
        error: Unanswered | None,
        replayable: bool,
    ) -> tuple[float, Permit | None] | None:
        """Return the seconds until another try, and leave to make it; ``None`` for no other."""
        resilience = self._resilience
        cause = None if error is None else error.__cause__
        if isinstance(cause, UNSENDABLE):
            return None
        now = resilience.clock()
        attempt = Attempt(
            environ["REQUEST_METHOD"],
            number,
            sent=cause is None or not nothing_sent(cause),
            replayable=replayable,
            left=until.until - now,
            status=None if response is None else response.status_code,
            received=response is not None or (cause is not None and had_begun(cause)),
            retry_after=None if response is None else _retry_after(response),
            keyed=bool(environ.get("HTTP_IDEMPOTENCY_KEY")),
        )
        decision = resilience.decide(attempt, now)
        if not decision.again:
            return None
        try:
            return decision.wait, resilience.admit(now)
        except Refusal:
            return None  # what there is, is told

    def _wait(self, seconds: float, permit: Permit | None, departure: Departure) -> None:
        if seconds:
            self._resilience.sleep(seconds)
        if departure.gone:
            if permit is not None:
                permit.done(Outcome.IGNORED)
            raise Refusal(CLIENT_LEFT, "the client has left")


def _retry_after(response: requests.Response) -> float | None:
    """Return the seconds of an answer's ``Retry-After``, the longest when there are several."""
    said = [
        read_retry_after(value, time.time())
        for name, value in response.raw.headers.items()
        if name.lower() == "retry-after"
    ]
    return max((seconds for seconds in said if seconds is not None), default=None)
