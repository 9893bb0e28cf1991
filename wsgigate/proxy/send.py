"""One request to one instance: what comes back, or what the client is told instead."""

from __future__ import annotations

import http.client

import requests
from requests.exceptions import InvalidHeader, InvalidURL
from urllib3.exceptions import HTTPError

from wsgigate.client.adapter import Sessions, Timeout
from wsgigate.client.response_reader import BrokenResponse, PoolFull, SlowResponse
from wsgigate.coordination.circuit import Permit
from wsgigate.http.bodies import ClientBody
from wsgigate.http.problem import Problem, Refusal
from wsgigate.http.wsgi import BodyError, BodyTooLarge
from wsgigate.proxy.disconnect import UNSEEN, ClientLeft, Departure
from wsgigate.proxy.pool import InstanceLease, Place
from wsgigate.proxy.request import Outgoing
from wsgigate.proxy.response import BadResponse, UpstreamCut, problem_of, reason_of, was_refused
from wsgigate.rules.circuit import Outcome

__all__ = [
    "CLIENT_LEFT",
    "Reservation",
    "Sender",
    "UNSENDABLE",
    "Unanswered",
    "failure_of",
    "had_begun",
    "nothing_sent",
    "outcome_of_error",
]


# What a request to an instance holds, and what its end tells of the service.

UNSENDABLE = (InvalidHeader, InvalidURL)
"""What is wrong with a request that can not be sent to anybody."""


class Reservation:
    """A request's hold on an instance, and leave to ask the service; tells how it ended.

    An answer that begins well is not told before its end: it may be cut. But a probe's is, as
    others wait for what it found, and an answer may have no end.

    :ivar instance: The instance.
    :ivar member: What the pool knows it by.
    """

    __slots__ = ("_lease", "_outcome", "_permit", "_status", "_took", "instance", "member")

    def __init__(self, lease: InstanceLease, permit: Permit | None) -> None:
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


CLIENT_LEFT = Problem(499)
"""Read by nobody but the log, under the status that nginx has for it."""

_SEND_ERRORS = (
    requests.RequestException,
    HTTPError,
    OSError,
    http.client.HTTPException,
    ValueError,
)


class Unanswered(Refusal):
    """The instance gave no answer, and it is not the client's doing; the cause says why."""

    def __init__(self, error: Exception) -> None:
        super().__init__(problem_of(error), reason_of(error))


class Sender:
    """Sends requests to the instances of a service.

    :param sessions: Where connections come from.
    :param timeout: What a request may take, unless said for one.
    :param verify: Whether to verify the instances' TLS certificates, or a bundle to do it by.
    :param cert: A client certificate: the path of a PEM file, or of one and of its key.
    """

    def __init__(
        self,
        sessions: Sessions,
        timeout: Timeout,
        verify: bool | str,
        cert: str | tuple[str, str] | None,
    ) -> None:
        self._sessions = sessions
        self.timeout = timeout
        self._verify = verify
        self._cert = cert

    def send(
        self, request: Outgoing, departure: Departure, timeout: Timeout | None = None
    ) -> requests.Response:
        """Return the response to *request*, its body unread.

        :param departure: Tells whether the client has left.
        :raises Unanswered: There is none.
        :raises Refusal: There is none, and the client is the reason.
        """
        if departure is not UNSEEN:
            request.headers.on_socket = departure.set_upstream  # type: ignore[attr-defined]
        try:
            return self._sessions.adapter(request.origin).send(
                request,
                stream=True,
                timeout=timeout or self.timeout,
                verify=self._verify,
                cert=self._cert,
            )
        except Exception as error:
            broken = _broken(request.body)
            if isinstance(broken, BodyTooLarge):
                raise Refusal(Problem(413, "Request body too large."), str(broken)) from error
            if departure.gone:
                raise Refusal(CLIENT_LEFT, "the client has left") from error
            if broken is not None and isinstance(broken.__cause__, TimeoutError):
                raise Refusal(Problem(408, "Request body came too slowly."), str(broken)) from error
            if broken is not None:
                raise Refusal(Problem(400, "Request body ended early."), str(broken)) from error
            if isinstance(error, _SEND_ERRORS):
                raise Unanswered(error) from error
            raise


def _broken(body: object) -> BodyError | None:
    return body.error if isinstance(body, ClientBody) else None
