"""What a request to an instance holds, and what its end tells of the service."""

from __future__ import annotations

import http.client

import requests
from requests.exceptions import InvalidHeader, InvalidURL

from wsgigate.circuits import Permit
from wsgigate.proxy.bulkhead import Place
from wsgigate.proxy.departure import ClientLeft
from wsgigate.proxy.faults import BrokenResponse, PoolFull, SlowResponse
from wsgigate.proxy.pool import Lease
from wsgigate.proxy.response import BadResponse, UpstreamCut, problem_of, was_refused
from wsgigate.rules.circuit import Outcome

__all__ = ["UNSENDABLE", "Hold", "failure_of", "had_begun", "nothing_sent", "outcome_of_error"]

UNSENDABLE = (InvalidHeader, InvalidURL)
"""What is wrong with a request that can not be sent to anybody."""


class Hold:
    """A request's hold on an instance, and leave to ask the service; tells how it ended.

    An answer that begins well is not told before its end: it may be cut. But a probe's is, as
    others wait for what it found, and an answer may have no end.

    :ivar instance: The instance.
    :ivar member: What the pool knows it by.
    """

    __slots__ = ("_lease", "_outcome", "_permit", "_status", "_took", "instance", "member")

    def __init__(self, lease: Lease, permit: Permit | None) -> None:
        self.instance = lease.instance
        self.member = lease.member
        self._lease = lease
        self._permit = permit
        self._outcome = Outcome.IGNORED
        self._status = 0
        self._took = 0.0

    def keep(self, place: Place) -> None:
        """Keep the request's *place* in a bulkhead until it has ended."""
        self._lease.place = place

    def began(self) -> None:
        """Take note that the response which counts has begun."""
        self._lease.began()

    def answered(self, outcome: Outcome, took: float, status: int = 0) -> None:
        """Take note that an answer has begun.

        :param took: Seconds until it did.
        :param status: Its status code.
        """
        self._outcome = outcome
        self._took = took
        self._status = status
        permit = self._permit
        if permit is not None and (outcome is not Outcome.OK or permit.probe):
            permit.done(outcome, took=took, why=self._why(None, outcome))

    def release(self, error: Exception | None = None) -> None:
        """Take note that the request has ended; to say so again does nothing.

        :param error: What ended it, if it is not that it was served.
        """
        outcome = self._outcome if error is None else outcome_of_error(error)
        why = "" if outcome is Outcome.OK else self._why(error, outcome)
        self._lease.end(outcome, why)
        permit = self._permit
        if permit is not None:
            permit.done(outcome, took=self._took, why=why)

    def _why(self, error: Exception | None, outcome: Outcome) -> str:
        """Return what failed, in words that name no host; empty if nothing did."""
        if outcome is Outcome.FAILED or outcome is Outcome.UNREACHABLE:
            return f"status {self._status}" if error is None else failure_of(error)
        return ""


def outcome_of_error(error: Exception) -> Outcome:
    """Return what *error*, which ended a request to an instance, tells of the service."""
    if isinstance(error, (UpstreamCut, BadResponse)):
        return Outcome.FAILED
    if isinstance(error, (ClientLeft, PoolFull, *UNSENDABLE)):
        return Outcome.IGNORED  # the client; our own limit; what can not be sent to anybody
    if nothing_sent(error):
        return Outcome.UNREACHABLE
    return Outcome.FAILED


def failure_of(error: Exception) -> str:
    """Return in the words that clients get what went wrong with an instance."""
    if isinstance(error, UpstreamCut):
        return "Response too slow" if isinstance(error.__cause__, SlowResponse) else "Response cut"
    return str(problem_of(error).extensions.get("error", "Invalid response"))


def nothing_sent(error: BaseException) -> bool:
    """Return whether *error* is that no connection came about, so that nothing was sent."""
    return isinstance(error, (requests.ConnectTimeout, PoolFull)) or was_refused(error)


def had_begun(error: BaseException) -> bool:
    """Return whether *error* is that an answer began which is none, or not all of one."""
    inner: object = error
    for _ in range(5):
        if isinstance(inner, BrokenResponse):
            return True
        if isinstance(inner, http.client.HTTPException):
            return not isinstance(inner, http.client.RemoteDisconnected)
        wrapped = [arg for arg in getattr(inner, "args", ()) if isinstance(arg, Exception)]
        inner = getattr(inner, "reason", None) or (wrapped[-1] if wrapped else None)
    return False
