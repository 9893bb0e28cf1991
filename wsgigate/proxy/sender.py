"""One request to one instance: what comes back, or what the client is told instead."""

from __future__ import annotations

import http.client

import requests
from urllib3.exceptions import HTTPError

from wsgigate.problem import Problem, Refusal
from wsgigate.proxy.client_body import ClientBody
from wsgigate.proxy.departure import UNSEEN, Departure
from wsgigate.proxy.request import Outgoing
from wsgigate.proxy.response import problem_of, reason_of
from wsgigate.proxy.transport import Sessions, Timeout
from wsgigate.wsgi import BodyError, BodyTooLarge

__all__ = ["CLIENT_LEFT", "Sender", "Unanswered"]

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
            request.headers.holds = departure.holds  # type: ignore[attr-defined]
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
