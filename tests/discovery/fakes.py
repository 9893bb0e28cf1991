"""Fakes of servers that can not be installed for a test. What they say follows their documentation.

They are not Consul and not Kubernetes: they have the few endpoints that sources ask for, with the
rules that are documented for these, and can be made to behave badly.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Fake:
    """A server on loopback, a thread for each request; use it as a context manager.

    :ivar asked: The targets of all requests.
    :ivar tokens: What came as a token, with each of them.
    :ivar statuses: Answered to the next requests instead of what they ask for.
    :param certificate: A PEM file with a certificate and its key, for one that speaks TLS.
    """

    token_field = "Authorization"

    def __init__(self, certificate: Path | None = None) -> None:
        self.certificate = certificate
        self.asked: list[str] = []
        self.tokens: list[str | None] = []
        self.statuses: list[int] = []
        self.changed = threading.Condition()
        self.stopped = False

    def __enter__(self) -> Any:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with fake.changed:
                    fake.asked.append(self.path)
                    fake.tokens.append(self.headers.get(fake.token_field))
                    fake.changed.notify_all()
                    status = fake.statuses.pop(0) if fake.statuses else None
                if status is not None:
                    self.answer({"message": "no"}, status=status)
                    return
                parts = urlsplit(self.path)
                query = parse_qs(parts.query)
                try:
                    fake.serve(self, parts.path, query)
                except ConnectionError:
                    self.close_connection = True

            def answer(self, document: object, status: int = 200, **fields: object) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                for name, value in fields.items():
                    self.send_header(name.replace("_", "-"), str(value))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        scheme = "http"
        if self.certificate is not None:
            scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def serve(self, handler: Any, path: str, query: dict[str, list[str]]) -> None:
        raise NotImplementedError

    @contextmanager
    def change(self) -> Iterator[None]:
        """Wake those who wait for a change, after what is done meanwhile."""
        with self.changed:
            yield
            self.changed.notify_all()

    def wait_until_asked(self, times: int) -> None:
        """Return when so many requests have come."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= times, 30)


class FakeConsul(Fake):
    """``/v1/health/service/NAME`` with blocking queries, and nothing else of Consul."""

    token_field = "X-Consul-Token"

    def __init__(self, certificate: Path | None = None) -> None:
        super().__init__(certificate)
        self.index: int | None = 10
        self.entries: list[dict[str, Any]] = []

    def register(
        self,
        address: str,
        port: int = 8000,
        *,
        status: str = "passing",
        node: str = "10.9.9.9",
        tags: tuple[str, ...] = (),
        weights: dict[str, int] | None = None,
    ) -> None:
        service = {"Service": "web", "Address": address, "Port": port, "Tags": list(tags)}
        if weights is not None:
            service["Weights"] = weights
        checks = [{"CheckID": "serfHealth", "Status": "passing"}, {"Status": status}]
        with self.change():
            self.index = (self.index or 0) + 1
            self.entries.append({"Node": {"Address": node}, "Service": service, "Checks": checks})

    def deregister(self, address: str) -> None:
        with self.change():
            self.index = (self.index or 0) + 1
            self.entries = [e for e in self.entries if e["Service"]["Address"] != address]

    def restore(self, index: int, *addresses: str) -> None:
        """Be a server that was restored from a snapshot: its index goes back."""
        with self.change():
            self.index, self.entries = index - len(addresses), []
        for address in addresses:
            self.register(address)

    def serve(self, handler: Any, path: str, query: dict[str, list[str]]) -> None:
        if path != "/v1/health/service/web":
            handler.answer([], X_Consul_Index=self.index or 1)
            return
        index = int(query.get("index", ["0"])[0])
        wait = float(query.get("wait", ["300s"])[0].removesuffix("s"))
        with self.changed:
            if index and self.index is not None:
                self.changed.wait_for(lambda: self.stopped or self.index != index, wait)
            tags = set(query.get("tag", ()))
            found = [e for e in self.entries if tags <= set(e["Service"]["Tags"])]
            fields = {} if self.index is None else {"X_Consul_Index": self.index}
        handler.answer(found, **fields)


class FakeKubernetes(Fake):
    """EndpointSlices of one namespace, listed in pages and watched, and nothing else."""

    path = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"

    def __init__(self, certificate: Path | None = None) -> None:
        super().__init__(certificate)
        self.version = 100
        self.oldest = 0
        self.slices: dict[str, dict[str, Any]] = {}
        self.events: list[tuple[int, dict[str, Any]]] = []
        self.cut = False
        self.page = 500

    def put(
        self,
        name: str,
        *endpoints: dict[str, Any],
        family: str = "IPv4",
        ports: tuple[dict[str, Any], ...] = ({"name": "http", "port": 8080, "protocol": "TCP"},),
    ) -> None:
        kind = "MODIFIED" if name in self.slices else "ADDED"
        self._event(
            kind,
            {
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": family,
                "endpoints": list(endpoints),
                "ports": list(ports),
            },
        )

    def delete(self, name: str) -> None:
        self._event("DELETED", dict(self.slices[name]))

    def bookmark(self) -> None:
        self._event("BOOKMARK", {"kind": "EndpointSlice", "metadata": {}})

    def forget(self) -> None:
        """Compact: what was before is not known any more."""
        with self.change():
            self.version += 1
            self.oldest = self.version

    def cut_watches(self) -> None:
        with self.change():
            self.cut = True

    def _event(self, kind: str, item: dict[str, Any]) -> None:
        with self.change():
            self.version += 1
            item["metadata"] = {**item["metadata"], "resourceVersion": str(self.version)}
            if kind == "DELETED":
                del self.slices[item["metadata"]["name"]]
            elif kind != "BOOKMARK":
                self.slices[item["metadata"]["name"]] = item
            self.events.append((self.version, {"type": kind, "object": item}))

    def serve(self, handler: Any, path: str, query: dict[str, list[str]]) -> None:
        selects = query.get("labelSelector") == ["kubernetes.io/service-name=web"]
        if path != self.path or not selects:
            handler.answer({"kind": "Status", "code": 404}, status=404)
        elif "watch" in query:
            self._watch(handler, int(query["resourceVersion"][0]), query)
        else:
            self._list(handler, query)

    def _list(self, handler: Any, query: dict[str, list[str]]) -> None:
        with self.changed:
            items, version = list(self.slices.values()), self.version
        first = int(query.get("continue", ["0"])[0])
        after = first + min(self.page, int(query["limit"][0]))
        about = {"resourceVersion": str(version)}
        if after < len(items):
            about["continue"] = str(after)
        handler.answer({"metadata": about, "items": items[first:after]})

    def _watch(self, handler: Any, version: int, query: dict[str, list[str]]) -> None:
        ends = time.monotonic() + float(query["timeoutSeconds"][0])
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while True:
            with self.changed:
                while not (self.stopped or self.cut or self.version > version):
                    if not self.changed.wait(ends - time.monotonic()):
                        break
                if version < self.oldest:
                    gone = {"kind": "Status", "code": 410, "reason": "Expired"}
                    self._chunk(handler, {"type": "ERROR", "object": gone})
                    break
                if self.stopped or self.cut or time.monotonic() >= ends:
                    self.cut = False
                    break
                events = [event for at, event in self.events if at > version]
                version = self.version
            for event in events:
                self._chunk(handler, event)
        handler.wfile.write(b"0\r\n\r\n")

    def _chunk(self, handler: Any, event: dict[str, Any]) -> None:
        line = json.dumps(event).encode() + b"\n"
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
        handler.wfile.flush()


def endpoint(address: str, **conditions: bool) -> dict[str, Any]:
    """Return an endpoint of a slice with these conditions: ready, serving, terminating."""
    return {"addresses": [address, "10.255.255.255"], "conditions": conditions}
