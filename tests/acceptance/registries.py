"""A registry in the process of a test: the real one, over HTTP, with a short memory and a note of
all that it was asked."""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self
from wsgiref.types import StartResponse, WSGIEnvironment

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from tests.support.ports import free_port
from tests.support.waiting import until
from wsgigate.auth.bearer import Access
from wsgigate.registry import Registry
from wsgigate.registry.api import RegistryApi
from wsgigate.rules.registry import LeaseRules, Registered
from wsgigate.store.memory import MemoryStore

TOKEN = "registry-token-of-the-tests"


class Asked(NamedTuple):
    """One request to the registry.

    :ivar what: Its method and the first segment of its path.
    :ivar status: What it was answered.
    """

    what: str
    status: int


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:
        pass


class RegistryServer:
    """The registry, to be started, stopped, and started anew with nothing in it.

    :param heartbeat: How often it wants to hear of its instances.
    :param token: What it takes; a service that has another is refused.
    """

    def __init__(self, *, heartbeat: float = 0.5, token: str = TOKEN) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.asked: list[Asked] = []
        self.when: Callable[[Asked], object] = lambda asked: None
        """Called for each request when it has been done and not yet answered."""
        self.rules = LeaseRules(heartbeat=heartbeat, unhealthy_after=30.0, remove_after=90.0)
        self._token = token
        self._server: BaseWSGIServer | None = None
        self._connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def env(self, token: str = TOKEN) -> dict[str, str]:
        """Return the environment of a service that registers here."""
        return {"REGISTRY_URL": self.url, "REGISTRY_TOKEN": token}

    def start(self) -> Self:
        """Serve, with nothing registered."""
        self.registry = Registry(MemoryStore(), rules=self.rules)
        api = RegistryApi(self.registry, Access(self._token))

        def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            def start(status: str, headers: list[tuple[str, str]], *more: object) -> object:
                what = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO'].split('/')[1]}"
                asked = Asked(what, int(status[:3]))
                self.when(asked)
                self.asked.append(asked)
                return start_response(status, headers)

            return api(environ, start)

        self._server = server = make_server(
            "127.0.0.1", self.port, app, threaded=True, request_handler=_Quiet
        )
        accept = server.get_request

        def get_request() -> tuple[socket.socket, Any]:
            connection, address = accept()
            self._connections.add(connection)
            return connection, address

        server.get_request = get_request  # type: ignore[method-assign]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def stop(self) -> None:
        """Be gone, and forget everybody."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            for connection in list(self._connections):  # those that wait for a change
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def instances(self, service: str = "users") -> tuple[Registered, ...]:
        """Return who is registered."""
        return self.registry.discover(service).instances

    def count(self, what: str) -> int:
        """Return how often it was asked so with success."""
        return sum(asked.what == what and asked.status < 300 for asked in self.asked)

    def wait_until(self, status: str, service: str = "users") -> Registered:
        """Return the only instance as soon as that is its status."""

        def found() -> Registered | None:
            instances = self.instances(service)
            assert len(instances) <= 1, instances
            return instances[0] if [each.status for each in instances] == [status] else None

        registered: Registered = until(found)
        return registered

    def wait_until_gone(self, service: str = "users") -> None:
        """Wait until no instance is registered."""
        until(lambda: not self.instances(service))

    def wait_for(self, what: str, count: int = 1) -> None:
        """Wait until it was asked so *count* times with success."""
        until(lambda: self.count(what) >= count)
