"""The tries that a request to a service is given: how they end decides whether there is another."""

from __future__ import annotations

import time
from typing import TypeAlias
from wsgiref.types import WSGIEnvironment

import requests

from wsgigate.circuits import Permit
from wsgigate.problem import Refusal
from wsgigate.proxy.asker import TIMEOUT_KEY, Asker, Make
from wsgigate.proxy.departure import Departure
from wsgigate.proxy.hedging import Race
from wsgigate.proxy.hold import UNSENDABLE, Hold, had_begun, nothing_sent
from wsgigate.proxy.member import Member
from wsgigate.proxy.pool import Lease, Pool
from wsgigate.proxy.replay import replayed
from wsgigate.proxy.request import Outgoing
from wsgigate.proxy.sender import CLIENT_LEFT, Sender, Unanswered
from wsgigate.proxy.service import Resilience
from wsgigate.rules.circuit import Outcome
from wsgigate.rules.deadline import Deadline, deadline, read_timeout
from wsgigate.rules.retry import Attempt, read_retry_after

__all__ = ["Answer", "Tries"]

Answer: TypeAlias = tuple[requests.Response, Outgoing, Hold]
"""The answer that counts, its body unread; what it answers; and the hold on who gave it."""


class Tries:
    """Asks a service, again where that is safe, as far as it is to be asked.

    :param pool: The service's instances.
    :param resilience: What is done when it fails.
    :param make: Makes the request for an instance.
    :param sender: Sends it.
    """

    def __init__(self, pool: Pool, resilience: Resilience, make: Make, sender: Sender) -> None:
        if pool.sticky is not None and resilience.hedge is not None:
            raise ValueError("hedge is not for a service whose clients stay with an instance")
        self._asker = Asker(pool, resilience, make, sender)
        self._resilience = resilience
        self._total = sender.timeout.total

    def look(self) -> None:
        """See that the service may be asked, by one whose end will tell nothing of it.

        :raises Refusal: It may not.
        """
        permit = self._resilience.admit(self._resilience.clock())
        if permit is not None:
            permit.done(Outcome.IGNORED)

    def lease(self, environ: WSGIEnvironment) -> Lease:
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
        self, environ: WSGIEnvironment, hold: Hold, until: Deadline | None, departure: Departure
    ) -> Answer:
        """Return the answer to the first try, or to another that was made beside it."""
        hedge = self._resilience.hedge
        if hedge is None or not hedge.applies(environ):
            return *self._asker.ask(environ, hold, until, 1, departure), hold

        def ask(
            environ: WSGIEnvironment, hold: Hold, number: int, departure: Departure
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
