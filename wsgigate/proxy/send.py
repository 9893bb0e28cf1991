"""Sends one request to one instance, and maps errors to client responses and outcomes."""

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
from wsgigate.proxy.disconnect import UNWATCHED, ClientLeft, ClientWatch
from wsgigate.proxy.pool import InstanceLease, Slot
from wsgigate.proxy.request import Outgoing
from wsgigate.proxy.response import BadResponse, UpstreamCut, problem_of, reason_of, was_refused
from wsgigate.rules.circuit import Outcome

__all__ = [
    "CLIENT_LEFT",
    "UNSENDABLE",
    "Reservation",
    "Sender",
    "Unanswered",
    "failure_of",
    "had_begun",
    "nothing_sent",
    "outcome_of_error",
]

UNSENDABLE = (InvalidHeader, InvalidURL)
"""The errors of a request that cannot be sent to any instance."""


class Reservation:
    """An attempt's instance lease and circuit permit; reports its outcome to both.

    A success is reported at the end of the response, because the response may still be cut. The
    success of a half-open circuit's probe is reported when its response begins: other requests wait
    for it, and a response may have no end.

    :ivar instance: The instance.
    :ivar member: Its entry in the pool.
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

    def keep(self, slot: Slot) -> None:
        """Hold *slot*, the request's slot in a bulkhead, until the request has ended."""
        self._lease.slot = slot

    def began(self) -> None:
        """Report that the response to the client has begun."""
        self._lease.began()

    def answered(self, outcome: Outcome, took: float, status: int = 0) -> None:
        """Record that a response has begun.

        :param took: Seconds until it began.
        :param status: Its status code.
        """
        self._outcome = outcome
        self._took = took
        self._status = status
        permit = self._permit
        if permit is not None and (outcome is not Outcome.OK or permit.probe):
            permit.done(outcome, took=took, why=self._why(None, outcome))

    def release(self, error: Exception | None = None) -> None:
        """End the attempt and report its outcome; a second call does nothing.

        :param error: The error that ended it; ``None`` if it was served.
        """
        outcome = self._outcome if error is None else outcome_of_error(error)
        why = "" if outcome is Outcome.OK else self._why(error, outcome)
        self._lease.end(outcome, why)
        permit = self._permit
        if permit is not None:
            permit.done(outcome, took=self._took, why=why)

    def _why(self, error: Exception | None, outcome: Outcome) -> str:
        """Return the reason of a failure, without host names; empty for no failure."""
        if outcome is Outcome.FAILED or outcome is Outcome.UNREACHABLE:
            return f"status {self._status}" if error is None else failure_of(error)
        return ""


def outcome_of_error(error: Exception) -> Outcome:
    """Return the outcome that the circuit breaker counts for *error*."""
    if isinstance(error, (UpstreamCut, BadResponse)):
        return Outcome.FAILED
    if isinstance(error, (ClientLeft, PoolFull, *UNSENDABLE)):
        return Outcome.IGNORED  # caused by the client, the gateway's limit, or the request itself
    if nothing_sent(error):
        return Outcome.UNREACHABLE
    return Outcome.FAILED


def failure_of(error: Exception) -> str:
    """Return the client-facing description of an instance's failure."""
    if isinstance(error, UpstreamCut):
        return "Response too slow" if isinstance(error.__cause__, SlowResponse) else "Response cut"
    return str(problem_of(error).extensions.get("error", "Invalid response"))


def nothing_sent(error: BaseException) -> bool:
    """Return whether *error* means that connecting failed, so nothing was sent."""
    return isinstance(error, (requests.ConnectTimeout, PoolFull)) or was_refused(error)


def had_begun(error: BaseException) -> bool:
    """Return whether *error* means that an invalid or incomplete response had begun."""
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
"""Not sent, only logged; nginx uses the same status."""

_SEND_ERRORS = (
    requests.RequestException,
    HTTPError,
    OSError,
    http.client.HTTPException,
    ValueError,
)


class Unanswered(Refusal):
    """The instance gave no response, and the client is not the cause; see ``__cause__``."""

    def __init__(self, error: Exception) -> None:
        super().__init__(problem_of(error), reason_of(error))


class Sender:
    """Sends requests to the instances of a service.

    :param sessions: Provides the connections.
    :param timeout: The default timeouts of a request.
    :param verify: Whether to verify the instances' TLS certificates, or a CA bundle to verify with.
    :param cert: A client certificate: the path of a PEM file, or ``(certificate, key)`` paths.
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
        self, request: Outgoing, watch: ClientWatch, timeout: Timeout | None = None
    ) -> requests.Response:
        """Return the response to *request*, its body unread.

        :param watch: Reports whether the client has disconnected.
        :param timeout: The timeouts of this request. Default: those of the sender.
        :raises Unanswered: The instance gave no response.
        :raises Refusal: The client caused the failure, such as a body that is too large.
        """
        if watch is not UNWATCHED:
            request.headers.on_socket = watch.set_upstream  # type: ignore[attr-defined]
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
            if watch.gone:
                raise Refusal(CLIENT_LEFT, "the client has disconnected") from error
            if broken is not None and isinstance(broken.__cause__, TimeoutError):
                raise Refusal(Problem(408, "Request body came too slowly."), str(broken)) from error
            if broken is not None:
                raise Refusal(Problem(400, "Request body ended early."), str(broken)) from error
            if isinstance(error, _SEND_ERRORS):
                raise Unanswered(error) from error
            raise


def _broken(body: object) -> BodyError | None:
    return body.error if isinstance(body, ClientBody) else None
