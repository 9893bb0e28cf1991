"""A registry with its compatibility APIs, called in this process and served for real clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest

from tests.discovery.conftest import Clock
from tests.support.stores import Fickle
from wsgigate.auth.bearer import Access
from wsgigate.registry import Registry
from wsgigate.registry.compat.consul import ConsulApi
from wsgigate.registry.compat.eureka import EurekaApi
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore
from wsgigate.testing.fakes import Server, new_environ

TOKEN = "the-token-of-all-services"
USERS_TOKEN = "the-token-of-users-alone"


class Reply:
    """The response of an API."""

    def __init__(self, server: Server) -> None:
        self.status = int(server.status.partition(" ")[0])
        self.headers = dict(server.headers)
        self.body = b"".join(server.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def field(self) -> object:
        """The invalid member that a 400 names."""
        assert self.status == 400, self.body
        assert self.headers["Content-Type"] == "application/problem+json"
        return self.json.get("field")


class CompatRegistry:
    """A registry with its compatibility APIs, and a clock to set."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = Fickle(MemoryStore(clock=self.clock))
        self.registry = Registry(self.store)
        self.access = Access(TOKEN, {"users": USERS_TOKEN})
        self.eureka = EurekaApi(self.registry, self.access)
        self.consul = ConsulApi(self.registry, self.access)

    def ask(
        self,
        method: str,
        url: str,
        body: object = b"",
        *,
        token: str | None = TOKEN,
        **fields: str,
    ) -> Reply:
        """Return the response of the API that *url* leads to.

        :param body: Bytes, or a document that is sent as JSON.
        :param token: Sent as clients of the API send it.
        :param fields: Members of the environ.
        """
        path, _, query = url.partition("?")
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        environ = {**new_environ(method, data), "PATH_INFO": path, "QUERY_STRING": query}
        if token is not None:
            environ |= credentials(path, token)
        app = self.eureka if path.startswith("/eureka") else self.consul
        return Reply(Server().serve(app, {**environ, **fields}))


def credentials(path: str, token: str) -> dict[str, str]:
    """Return the fields that send *token* to the API at *path*."""
    if not path.startswith("/eureka"):
        return {"HTTP_X_CONSUL_TOKEN": token}
    return {"HTTP_AUTHORIZATION": "Basic " + b64encode(f"any:{token}".encode()).decode()}


@pytest.fixture
def served() -> CompatRegistry:
    return CompatRegistry()


class _Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


class ServedApis:
    """The compatibility APIs over sockets, over a registry in LMDB.

    :ivar seen: The requests that were answered, ``PUT /eureka/...``.
    :ivar come: Those that have come, answered or not.
    """

    def __init__(self, store: LmdbStore) -> None:
        self.registry = Registry(store)
        self.access = Access(TOKEN, {"users": USERS_TOKEN})
        self.eureka = EurekaApi(self.registry, self.access)
        self.consul = ConsulApi(self.registry, self.access)
        self.seen: list[str] = []
        self.come: list[str] = []
        self._more = threading.Condition()
        self.server = make_server("127.0.0.1", 0, self, _Threads, _Quiet)
        self.port = self.server.server_port

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        path = environ["PATH_INFO"]
        app: WSGIApplication = self.eureka if path.startswith("/eureka") else self.consul
        request = f"{environ['REQUEST_METHOD']} {path}"
        try:
            self._note(self.come, request)
            return app(environ, start_response)
        finally:
            self._note(self.seen, request)

    def _note(self, requests: list[str], request: str) -> None:
        with self._more:
            requests.append(request)
            self._more.notify_all()

    def wait_until_come(self, request: str, times: int) -> None:
        """Return once *request* has arrived *times* times in all."""
        with self._more:
            assert self._more.wait_for(lambda: self.come.count(request) >= times, timeout=20)

    def wait_for(self, request: str, times: int = 1) -> None:
        """Return once *request* was answered *times* times from now on."""
        with self._more:
            wanted = self.seen.count(request) + times
            there = self._more.wait_for(lambda: self.seen.count(request) >= wanted, timeout=20)
            assert there, f"no {request} among {self.seen}"


@pytest.fixture
def apis(tmp_path: Path) -> Iterator[ServedApis]:
    """Yield APIs that are served."""
    store = LmdbStore(tmp_path / "store", map_size=1 << 22)
    served = ServedApis(store)
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield served
    served.server.shutdown()
    thread.join()
    served.server.server_close()
    store.close()


class Program:
    """A client's program in a separate process: it answers each line with ``=`` and JSON."""

    def __init__(self, text: str, *arguments: object, errors: Path) -> None:
        self._errors = errors
        with errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", text, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "no_proxy": "*"},
                text=True,
            )

    def tell(self, words: str) -> None:
        """Send a line to the program."""
        assert self.process.stdin is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()

    def does(self, words: str) -> Any:
        """Return the response of the program to the line *words*."""
        self.tell(words)
        return self.hear()

    def hear(self) -> Any:
        """Return the next response of the program."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("="):  # else a log's
                return json.loads(line[1:])
        raise AssertionError(self._errors.read_text())

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Any]:
    """Yield a function that starts a program; all of them end with the test."""
    started: list[Program] = []

    def start(text: str, *arguments: object) -> Program:
        log = tmp_path / f"program{len(started)}.log"
        started.append(Program(text, *arguments, errors=log))
        return started[-1]

    yield start
    for each in started:
        each.end()
