"""One health check over HTTP: a GET that ends in time, follows nothing and believes little.

What is asked may be broken or hostile: it may redirect to an address that only the gateway reaches,
send without end, or send one byte a second. So no redirect is followed, at most 64 KiB are read,
and the deadline holds for the whole of the exchange, not for each read of it.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
from collections.abc import Callable
from errno import EHOSTUNREACH, ENETUNREACH
from typing import Any

import requests
import urllib3.exceptions
from requests.models import PreparedRequest
from requests.structures import CaseInsensitiveDict

from wsgigate.discovery import Instance
from wsgigate.discovery.deadline import DeadlineAdapter
from wsgigate.rules.health import HealthCheck, Outcome

__all__ = ["HttpProbe"]

_MOST_BODY = 65_536
_BLOCK = 8_192
_RESPONSE_TIME = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,30}[\x21-\x7e])?")


class HttpProbe:
    """Ask an instance over HTTP whether it is well: a status from 200 to 299 says so.

    :param verify: Whether and against which file or folder of authorities TLS is verified.
    :param cert: A client certificate: a file with its key, or a pair of files.
    :param session: Carries adapters and TLS settings of the user's own instead. The deadline then
        holds between reads, and within one as far as its adapter keeps to its timeout.
    :param clock: Seconds of a clock that never steps back.
    """

    def __init__(
        self,
        *,
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        session: requests.Session | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if session is None:
            session = requests.Session()
            session.trust_env = False
            adapter = DeadlineAdapter(verify, cert)
            for prefix in ("http://", "https://", "http+unix://"):
                session.mount(prefix, adapter)
        self._session = session
        self._clock = clock

    def __call__(self, instance: Instance, check: HealthCheck) -> Outcome:
        """Return what *instance* answers to *check*; never raises for what it does."""
        request = PreparedRequest()
        request.method = "GET"
        request.url = instance.url + check.path
        request.headers = CaseInsensitiveDict(
            {
                "Host": instance.authority,
                "User-Agent": "wsgigate-health",
                "Accept": "*/*",
                "Accept-Encoding": "identity",
                "Connection": "close",
            }
        )
        session = self._session
        started = self._clock()
        status: int | None = None
        try:
            response = session.get_adapter(request.url).send(
                request,
                stream=True,
                timeout=check.timeout,
                verify=True if session.verify is None else session.verify,
                cert=session.cert,
            )
            try:
                status = int(response.status_code)
                took = f"{(self._clock() - started) * 1000:.2f}ms"
                took = _told_time(response.headers) or took
                self._read(response.raw, started + check.timeout)
            finally:
                response.close()
        except Exception as problem:  # whatever an instance makes the client raise is its failure
            return Outcome(False, status, error=_words(problem))
        if 200 <= status < 300:
            return Outcome(True, status, took)
        error = "Redirected" if 300 <= status < 400 else f"Status {status}"
        return Outcome(False, status, took, error)

    def _read(self, raw: Any, deadline: float) -> None:
        """Read the body as far as it matters: a service that can not finish it is not well."""
        read = getattr(raw, "read1", raw.read)
        left = _MOST_BODY
        while left > 0:
            data = read(min(left, _BLOCK), decode_content=False)
            if self._clock() > deadline:
                raise TimeoutError
            if not data:
                return
            left -= len(data)


def _told_time(headers: Any) -> str:
    for name in ("response-time", "x-response-time"):
        value = headers.get(name)
        if value and _RESPONSE_TIME.fullmatch(value):
            return str(value)
    return ""


_WRAPPERS = (urllib3.exceptions.MaxRetryError, urllib3.exceptions.NewConnectionError)
"""They only say that another exception happened."""

_WORDS: tuple[tuple[str, tuple[type[BaseException], ...]], ...] = (
    ("Host not found", (socket.gaierror,)),
    ("Timeout", (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)),
    ("TLS failed", (ssl.SSLError,)),
    ("Connection refused", (ConnectionRefusedError,)),
    ("Connection closed", (http.client.RemoteDisconnected,)),
    ("Connection reset", (ConnectionResetError, BrokenPipeError)),
    ("Incomplete response", (http.client.IncompleteRead,)),
    (
        "Bad response",
        (
            http.client.HTTPException,
            requests.exceptions.InvalidHeader,
            urllib3.exceptions.HTTPError,
            ValueError,
        ),
    ),
)


def _words(error: BaseException) -> str:
    """Return what went wrong in words that name no host, address or stack."""
    causes = [cause for cause in _causes(error) if not isinstance(cause, _WRAPPERS)]
    if any(isinstance(c, OSError) and c.errno in (EHOSTUNREACH, ENETUNREACH) for c in causes):
        return "Host unreachable"
    for words, kinds in _WORDS:
        if any(isinstance(cause, kinds) for cause in causes):
            return words
    return "Check failed"


def _causes(error: BaseException) -> list[BaseException]:
    """Return *error* and what it was made of: the libraries hide the cause in various places."""
    found: list[BaseException] = []
    ahead: list[object] = [error]
    while ahead and len(found) < 20:
        one = ahead.pop(0)
        if isinstance(one, BaseException) and one not in found:
            found.append(one)
            ahead += [*one.args, getattr(one, "reason", None), one.__cause__, one.__context__]
    return found
