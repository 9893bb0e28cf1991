"""One step at a registry over HTTP: it ends in time, follows nothing, and tells no secret."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import requests
from requests.models import PreparedRequest, Response
from requests.structures import CaseInsensitiveDict

from wsgigate.clocks import real
from wsgigate.discovery.deadline import DeadlineAdapter
from wsgigate.discovery.registration_entry import Entry, own_address
from wsgigate.rules.registration import Answer, Step, Wanted
from wsgigate.rules.retry import read_retry_after

__all__ = ["RegistryClient"]

TIMEOUT = 3.0
"""Seconds that one step takes at most."""

_MOST_BODY = 65_536
_MOST_WORDS = 200
_UNSEEN = re.compile(r"[^\x20-\x7e]+")


class RegistryClient:
    """Say to one of several registries how an instance stands.

    :param registries: Their URLs, as :func:`check_registry` returns them.
    :param entry: What is said of the instance.
    :param token: What allows it; empty for none. It is sent in ``Authorization`` and shown nowhere.
    :param verify: Whether and against which file or folder of authorities TLS is verified.
    """

    def __init__(
        self,
        registries: Sequence[str],
        entry: Entry,
        token: str = "",
        *,
        verify: bool | str = True,
    ) -> None:
        self.registries = tuple(registries)
        self.entry = entry
        self._token = token
        self._host = entry.host
        self._session = requests.Session()
        self._session.trust_env = False
        adapter = DeadlineAdapter(verify)
        for prefix in ("http://", "https://"):
            self._session.mount(prefix, adapter)

    @property
    def name(self) -> str:
        """What the instance is called in the log."""
        service = self.entry.service
        return service if self._host is None else f"{service}/{self.entry.id_at(self._host)}"

    def ask(self, step: Step, wanted: Wanted, place: int) -> Answer:
        """Do *step* at the registry *place*; never raises for what the registry does.

        :param wanted: The status that is told where one is.
        """
        registry = self.registries[place]
        try:
            if self._host is None:
                self._host = own_address(registry)
            request = self._request(registry, step, wanted, self._host)
            response = self._session.get_adapter(registry).send(
                request, stream=True, timeout=TIMEOUT
            )
            try:
                return self._answer(response, real() + TIMEOUT)
            finally:
                response.close()
        except Exception as error:  # whatever it is, the service it happens in goes on
            return Answer(None, why=self._words(_failure(error)))

    def _request(self, registry: str, step: Step, wanted: Wanted, host: str) -> PreparedRequest:
        names = (self.entry.service, self.entry.id_at(host))
        which = "/".join(quote(name, safe=":@") for name in names)
        method, path, document = {
            Step.REGISTER: ("POST", "/register", self.entry.document(host, wanted)),
            Step.HEARTBEAT: ("POST", f"/heartbeat/{which}", None),
            Step.TELL: ("PUT", f"/status/{which}", {"status": wanted.value}),
            Step.DEREGISTER: ("DELETE", f"/register/{which}", None),
        }[step]
        headers = {
            "User-Agent": "wsgigate-registration",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        body = b""
        if document is not None:
            body = json.dumps(document, allow_nan=False).encode("ascii")
            headers["Content-Type"] = "application/json"
        headers["Content-Length"] = str(len(body))
        request = PreparedRequest()
        request.method = method
        request.url = registry + path
        request.headers = CaseInsensitiveDict(headers)
        request.body = body
        return request

    def _answer(self, response: Response, deadline: float) -> Answer:
        status = int(response.status_code)
        retry_after = response.headers.get("Retry-After")
        document = _document(response.raw, deadline)
        return Answer(
            status,
            interval=_interval(document),
            retry_after=read_retry_after(retry_after, time.time()) if retry_after else None,
            why=self._words(_told(status, document)),
        )

    def _words(self, text: str) -> str:
        """Return *text* as it may be logged: an answer could have our token in it."""
        if self._token:
            text = text.replace(self._token, "...")
        return _UNSEEN.sub(" ", text)[:_MOST_WORDS]


_FAILURES: tuple[tuple[type[BaseException], str], ...] = (
    (requests.exceptions.SSLError, "no connection that TLS can vouch for"),
    (requests.exceptions.Timeout, "no answer in time"),
    (TimeoutError, "no answer in time"),
    (requests.exceptions.ConnectionError, "no connection"),
    (socket.gaierror, "its host has no address"),
    (OSError, "no way to its host"),
)


def _failure(error: Exception) -> str:
    """Return why there is no answer, in words that can have nothing secret in them."""
    for kind, words in _FAILURES:
        if isinstance(error, kind):
            return words
    return f"no answer that can be read ({type(error).__name__})"


def _document(raw: Any, deadline: float) -> dict[str, Any]:
    """Return the JSON object that an answer has for a body, or an empty one."""
    read, parts, left = getattr(raw, "read1", raw.read), [], _MOST_BODY
    while left > 0:
        part = read(left, decode_content=False)
        if real() > deadline:
            raise TimeoutError
        if not part:
            break
        left -= len(part)
        parts.append(part)
    try:
        document = json.loads(b"".join(parts))
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _interval(document: dict[str, Any]) -> float | None:
    instance = document.get("instance")
    interval = instance.get("heartbeatInterval") if isinstance(instance, dict) else None
    known = isinstance(interval, int | float) and not isinstance(interval, bool)
    return float(interval) if known else None  # type: ignore[arg-type]


def _told(status: int, document: dict[str, Any]) -> str:
    """Return what a refusal says, and of which member of the registration it says it."""
    if 200 <= status < 300:
        return ""
    words = [f"status {status}"]
    for name in ("field", "detail"):
        value = document.get(name)
        if isinstance(value, str) and value:
            words.append(value)
    return ": ".join(words)
