"""The requests of a registration to its registries, within a deadline, logging no secrets."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from wsgigate.client.exchange import HttpClient, Reply, reason_for
from wsgigate.http.fields import read_retry_after
from wsgigate.registration.entry import Entry, own_address
from wsgigate.rules.registration import RegistryResponse, Step, Wanted
from wsgigate.runtime.tls import Contexts

__all__ = ["RegistryClient"]


TIMEOUT = 3.0
"""The most seconds that a request takes."""

_MOST_BODY = 65_536

_LOGGED_TEXT = 200

_FIELDS = {
    "User-Agent": "wsgigate-registration",
    "Accept": "application/json",
    "Accept-Encoding": "identity",
}

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


class RegistryClient:
    """Sends the registration, heartbeats and status of an instance to one of several registries.

    :param registries: Their URLs, as :func:`check_registry` returns them.
    :param entry: The registration of the instance.
    :param token: The bearer token; empty for none. It is never logged.
    :param verify: Whether to verify TLS, or a file or folder of trusted certificate authorities.
    :raises ValueError: *verify* names no usable authorities.
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
        contexts = Contexts()
        if isinstance(verify, str):
            contexts.load(verify)
        tls = partial(contexts.get, verify)
        self._clients = [HttpClient(url, tls) for url in registries]

    @property
    def name(self) -> str:
        """The name of the instance in the log."""
        service = self.entry.service
        return service if self._host is None else f"{service}/{self.entry.id_at(self._host)}"

    def send(self, step: Step, wanted: Wanted, place: int) -> RegistryResponse:
        """Send the request for *step* to the registry at index *place*; never raises.

        :param wanted: The status, for steps that send one.
        """
        try:
            if self._host is None:
                self._host = own_address(self.registries[place])
            method, target, document = self._request(step, wanted, self._host)
            fields, body = dict(_FIELDS), b""
            if self._token:
                fields["Authorization"] = f"Bearer {self._token}"
            if document is not None:
                fields["Content-Type"] = "application/json"
                body = json.dumps(document, allow_nan=False).encode("ascii")
            client = self._clients[place]
            with client.send(method, target, fields, body, timeout=TIMEOUT) as reply:
                return self._answer(reply)
        except Exception as error:  # no error may reach the service that runs this
            return RegistryResponse(None, why=reason_for(error))

    def _request(
        self, step: Step, wanted: Wanted, host: str
    ) -> tuple[str, str, dict[str, Any] | None]:
        """Return the method, the target and the document of a step."""
        names = (self.entry.service, self.entry.id_at(host))
        which = "/".join(quote(name, safe=":@") for name in names)
        if step is Step.REGISTER:
            return "POST", "/register", self.entry.document(host, wanted)
        if step is Step.UPDATE:
            return "PUT", f"/status/{which}", {"status": wanted.value}
        if step is Step.DEREGISTER:
            return "DELETE", f"/register/{which}", None
        return "POST", f"/heartbeat/{which}", None

    def _answer(self, reply: Reply) -> RegistryResponse:
        document = _document(reply.body(_MOST_BODY))
        retry_after = reply.fields.get("retry-after")
        return RegistryResponse(
            reply.status,
            interval=_interval(document),
            retry_after=read_retry_after(retry_after, time.time()) if retry_after else None,
            why=self._redacted(_error_text(reply.status, document)),
        )

    def _redacted(self, text: str) -> str:
        """Return *text* for the log, without the token, which a response might repeat."""
        if self._token:
            text = text.replace(self._token, "...")
        return _UNPRINTABLE.sub(" ", text)[:_LOGGED_TEXT]


def _document(body: bytes) -> dict[str, Any]:
    """Return the JSON object in the *body* of a response; an empty one if it has none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _interval(document: dict[str, Any]) -> float | None:
    instance = document.get("instance")
    interval = instance.get("heartbeatInterval") if isinstance(instance, dict) else None
    known = isinstance(interval, int | float) and not isinstance(interval, bool)
    return float(interval) if known else None  # type: ignore[arg-type]


def _error_text(status: int, document: dict[str, Any]) -> str:
    """Return the status, field and detail of an error response; empty for a success."""
    if 200 <= status < 300:
        return ""
    parts = [f"status {status}"]
    for name in ("field", "detail"):
        value = document.get(name)
        if isinstance(value, str) and value:
            parts.append(value)
    return ": ".join(parts)
