"""Kubernetes source: a service's EndpointSlices, listed and then watched.

https://kubernetes.io/docs/reference/using-api/api-concepts/ defines watches, and
https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/ the conditions.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from wsgigate.discovery import Instance
from wsgigate.discovery.sources import Found, SourceError, distinct, instance_of
from wsgigate.discovery.sources.http import ApiClient, Lines, read_json, refused

__all__ = ["Kubernetes", "instances_of_slices"]


def instances_of_slices(
    slices: Collection[Mapping[str, Any]], port: str, scheme: str
) -> tuple[list[Instance], bool]:
    """Return the instances of EndpointSlices, and whether an empty list is certain.

    The first address of an endpoint is used, as by kube-proxy. The default of *ready* is true, that
    of *serving* is the value of *ready*, and that of *terminating* is false.

    :param port: A port's name, or its number.
    :raises SourceError: A slice is malformed, or no slice has the port.
    """
    ready: dict[str, list[Instance]] = {}
    terminating: dict[str, list[Instance]] = {}
    endpoints, named = 0, False
    try:
        for item in slices:
            number = _number(item.get("ports") or (), port)
            listed = item.get("endpoints") or ()
            endpoints += len(listed)
            if number is None:
                continue
            named = True
            family = item["addressType"]
            for endpoint in listed:
                conditions = endpoint.get("conditions") or {}
                is_ready = conditions.get("ready", True) is not False
                is_serving = conditions.get("serving")
                is_serving = is_ready if is_serving is None else is_serving
                instance = instance_of(
                    scheme, endpoint["addresses"][0], number, zone=endpoint.get("zone")
                )
                if is_ready:
                    ready.setdefault(family, []).append(instance)
                elif is_serving and conditions.get("terminating"):
                    terminating.setdefault(family, []).append(instance)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise SourceError("an EndpointSlice is malformed") from error
    if endpoints and not named:
        raise SourceError("none of its slices has that port")
    by_family = ready or terminating
    found = by_family.get("IPv4") or by_family.get("IPv6") or by_family.get("FQDN") or []
    return found, bool(slices) and not endpoints


def _number(ports: Collection[Mapping[str, Any]], wanted: str) -> int | None:
    for port in ports:
        number = port.get("port")
        if number is None or port.get("protocol", "TCP") != "TCP":
            continue
        if wanted in (str(number), port.get("name")):
            return int(number)
    return None


_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_WATCH = 50
"""Seconds after which a watch ends and another one starts; it may be silent until then."""

_GRACE = 15.0

_PAUSE = 0.1

_POLL = 1.0
"""Seconds until the next watch begins when one has ended."""

_PAGE = 500


class Kubernetes:
    """A source of the ready endpoints of a service.

    Inside a cluster it only needs a role that may ``list`` and ``watch`` ``endpointslices`` of
    ``discovery.k8s.io`` in the namespace: the pod has the address of the API, its certificate
    authority and the token of the service account. The token is read again for each request, as it
    is rotated.

    If no endpoint is ready, endpoints that are terminating but still serve are used. Of a
    dual-stack service the IPv4 addresses are used. An empty list is certain if the service has
    slices without endpoints; without any slice, the service does not exist, or not yet.

    :param namespace: The namespace of the service.
    :param service: The name of the service.
    :param port: The name of a port of the service, or the number of a port of its pods.
    :param server: The API's URL, such as that of ``kubectl proxy``. Default: the cluster's own.
    :param token: A bearer token. Default: that of the service account.
    :param ca: A file of trusted certificate authorities for *server*.
    :param scheme: The scheme of the instances, ``http`` or ``https``.
    :param account: The folder with the files of the service account.
    """

    def __init__(
        self,
        namespace: str,
        service: str,
        port: str,
        *,
        server: str | None = None,
        token: str | None = None,
        ca: str | None = None,
        scheme: str = "http",
        account: str | Path = _ACCOUNT,
    ) -> None:
        self.name = f"kubernetes:{namespace}/{service}:{port}"
        self._slices = (
            f"/apis/discovery.k8s.io/v1/namespaces/{quote(namespace, safe='')}/endpointslices"
        )
        self._selector = f"kubernetes.io/service-name={service}"
        self._port = port
        self._scheme = scheme
        self._server = server
        self._token = token
        self._ca = ca
        self._account = Path(account)
        self._by_name: dict[str, Mapping[str, Any]] = {}
        self._version = ""
        self._watch: Lines | None = None

    def close(self) -> None:
        """End the watch; the next :meth:`find` lists again."""
        self._version = ""
        self._by_name = {}
        self._end_watch()

    def find(self, stopping: threading.Event) -> Found:
        """Return the instances as soon as there is a change, or when a watch ends."""
        again_in = _PAUSE
        try:
            if not self._version:
                self._list(stopping)
            else:
                self._next_change(stopping)
                again_in = _PAUSE if self._watch is not None else _POLL
        except SourceError:
            self.close()
            raise
        found, certain = instances_of_slices(self._by_name.values(), self._port, self._scheme)
        return Found(distinct(found), again_in, certain)

    def _list(self, stopping: threading.Event) -> None:
        known: dict[str, Mapping[str, Any]] = {}
        more = ""
        while True:
            query = {"labelSelector": self._selector, "limit": _PAGE}
            if more:
                query["continue"] = more
            client, fields = self._client()
            answer = client.get(f"{self._slices}?{urlencode(query)}", stopping, fields=fields)
            if answer.status != 200:
                raise refused(answer.status)
            document: Any = read_json(answer.body)
            try:
                about = document["metadata"]
                known |= {_name(item): item for item in document["items"]}
                version, more = about["resourceVersion"], about.get("continue") or ""
            except (KeyError, TypeError, AttributeError) as error:
                raise SourceError("its answer is not a list of slices") from error
            if not more:
                break
        self._by_name, self._version = known, str(version)

    def _next_change(self, stopping: threading.Event) -> None:
        """Apply the next change of the watch; return when the watch ends, too."""
        if self._watch is None:
            query = {
                "labelSelector": self._selector,
                "watch": 1,
                "allowWatchBookmarks": "true",
                "resourceVersion": self._version,
                "timeoutSeconds": _WATCH,
            }
            client, fields = self._client()
            target = f"{self._slices}?{urlencode(query)}"
            self._watch = client.lines(target, stopping, fields=fields)
            if self._watch.status == 410:  # the server no longer has the changes since that version
                self.close()
                return
            if self._watch.status != 200:
                raise refused(self._watch.status)
        line = self._watch.next(_WATCH + _GRACE)
        if line is None:
            self._end_watch()
        elif line.strip():
            self._apply(read_json(line))

    def _apply(self, event: Any) -> None:
        try:
            kind, item = event["type"], event["object"]
            if kind == "ERROR":  # 410 as a rule: list again
                self.close()
                return
            self._version = str(item["metadata"]["resourceVersion"])
            if kind in ("ADDED", "MODIFIED"):
                self._by_name[_name(item)] = item
            elif kind == "DELETED":
                self._by_name.pop(_name(item), None)
        except (KeyError, TypeError) as error:
            raise SourceError("its answer has a malformed change") from error

    def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def _client(self) -> tuple[ApiClient, dict[str, str]]:
        if self._server is not None:
            fields = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
            return ApiClient(self._server, ca=self._ca), fields
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{part}") for part in ("HOST", "PORT"))
        if not host:
            raise SourceError("this is not inside a cluster, and server is not set")
        host = f"[{host}]" if ":" in host else host
        try:
            token = self._token or (self._account / "token").read_text().strip()
        except OSError as error:
            raise SourceError("the service account's token cannot be read") from error
        client = ApiClient(f"https://{host}:{port or 443}", ca=str(self._account / "ca.crt"))
        return client, {"Authorization": f"Bearer {token}"}


def _name(item: Any) -> str:
    return str(item["metadata"]["name"])
