"""A request to a service that is looked after: how it ends is told to those who decide by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias
from wsgiref.types import WSGIEnvironment

import requests
from requests.exceptions import InvalidHeader, InvalidURL

from wsgigate.circuits import Permit
from wsgigate.discovery import Instance
from wsgigate.problem import Problem, Refusal
from wsgigate.proxy.departure import ClientLeft, Departure
from wsgigate.proxy.faults import PoolFull
from wsgigate.proxy.pool import Lease, Pool
from wsgigate.proxy.request import Outgoing
from wsgigate.proxy.response import BadResponse, UpstreamCut, was_refused
from wsgigate.proxy.sender import Sender, Unanswered
from wsgigate.proxy.service import Resilience
from wsgigate.rules.circuit import Outcome
from wsgigate.rules.outcomes import outcome_of
from wsgigate.wsgi import INSTANCE

__all__ = ["NO_INSTANCE", "Answer", "Hold", "Make", "Tries", "outcome_of_error"]

NO_INSTANCE = Problem(
    503,
    "Service temporarily unavailable",
    extensions={"error": "No instance available"},
    headers=(("Retry-After", "5"),),
)

_UNSENDABLE = (InvalidHeader, InvalidURL)

Make: TypeAlias = Callable[[WSGIEnvironment, Instance], Outgoing]
"""Makes the request for an instance out of the client's."""


class Hold:
    """A request's hold on an instance, and leave to ask the service; tells how it ended.

    An answer that begins well is not told before its end: it may be cut. But a probe's is, as
    others wait for what it found, and an answer may have no end.

    :ivar instance: The instance.
    :ivar member: What the pool knows it by.
    """

    __slots__ = ("_lease", "_outcome", "_permit", "_took", "instance", "member")

    def __init__(self, lease: Lease, permit: Permit | None) -> None:
        self.instance = lease.instance
        self.member = lease.member
        self._lease = lease
        self._permit = permit
        self._outcome = Outcome.IGNORED
        self._took = 0.0

    def answered(self, outcome: Outcome, took: float) -> None:
        """Take note that an answer has begun.

        :param took: Seconds until it did.
        """
        self._outcome = outcome
        self._took = took
        permit = self._permit
        if permit is not None and (outcome is not Outcome.OK or permit.probe):
            permit.done(outcome, took=took)

    def release(self, error: Exception | None = None) -> None:
        """Take note that the request has ended; to say so again does nothing.

        :param error: What ended it, if it is not that it was served.
        """
        self._lease.release()
        permit = self._permit
        if permit is not None:
            outcome = self._outcome if error is None else outcome_of_error(error)
            permit.done(outcome, took=self._took)


Answer: TypeAlias = tuple[requests.Response, Outgoing, Hold]
"""The answer that counts, its body unread; what it answers; and the hold on who gave it."""


class Tries:
    """Asks a service, as far as it is to be asked.

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

    def hold(self, now: float, key: str | None) -> Hold:
        """Return a hold on the instance for the next request.

        :param key: Tells requests that belong together.
        :raises Refusal: The service is not to be asked, or nobody is there to be.
        """
        permit = self._resilience.admit(now)
        lease = self._pool.pick(key)
        if lease is not None:
            return Hold(lease, permit)
        if permit is not None:
            permit.done(Outcome.IGNORED)
        raise Refusal(NO_INSTANCE, "no instance")

    def look(self) -> None:
        """See that the service may be asked, by one whose end will tell nothing of it.

        :raises Refusal: It may not.
        """
        permit = self._resilience.admit(self._resilience.clock())
        if permit is not None:
            permit.done(Outcome.IGNORED)

    def answer(self, environ: WSGIEnvironment, departure: Departure) -> Answer:
        """Return what the service answers to the request of *environ*.

        :param departure: Tells whether the client has left.
        :raises Refusal: Nothing; carries what the client is told.
        """
        resilience, pool = self._resilience, self._pool
        timed = self._timed
        began = resilience.clock()
        hold = self.hold(began, None if pool.key is None else pool.key(environ))
        try:
            environ[INSTANCE] = hold.instance.address
            request = self._make(environ, hold.instance)
            if timed:
                began = resilience.clock()
            response = self._sender.send(request, departure)
            took = resilience.clock() - began if timed else 0.0
            outcome = outcome_of(response.status_code, resilience.failures)
            if pool.timed:
                pool.answered(hold.member, took, outcome is Outcome.FAILED)
            hold.answered(outcome, took)
            return response, request, hold
        except Unanswered as error:
            if pool.timed:
                pool.answered(hold.member, resilience.clock() - began, True)
            cause = error.__cause__
            hold.release(cause if isinstance(cause, Exception) else None)
            raise
        except BaseException:
            hold.release()
            raise


def outcome_of_error(error: Exception) -> Outcome:
    """Return what *error*, which ended a request to an instance, tells of the service."""
    if isinstance(error, (UpstreamCut, BadResponse)):
        return Outcome.FAILED
    if isinstance(error, (ClientLeft, PoolFull, *_UNSENDABLE)):
        return Outcome.IGNORED  # the client; our own limit; what can not be sent to anybody
    if isinstance(error, requests.ConnectTimeout) or was_refused(error):
        return Outcome.UNREACHABLE
    return Outcome.FAILED
