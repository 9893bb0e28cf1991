"""Instances come and go under load, by every kind of source, and no request fails.

Consul and Kubernetes are fakes here, see ``tests/discovery/fakes.py``; all else is real.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.acceptance.load import Load
from tests.discovery.fakes import FakeConsul, FakeKubernetes, endpoint
from tests.discovery.name_server import NameServer
from tests.support.servers import Served
from tests.support.waiting import until

Announce = Callable[[list[int]], None]

SLOW = 1.5
"""Seconds that a slow answer takes: longer than it takes to follow a change."""


class Instance:
    """A service on loopback that keeps connections, and answers with its port."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = 5.0  # for which an idle connection is kept, as most servers do

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path.endswith("/slow"):
                    threading.Event().wait(SLOW)
                body = str(self.server.server_address[1]).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False  # so that its end waits for all connections
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def leave(self) -> None:
        """End as a service does that is told to: take nothing more, and finish the rest."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def drop(self) -> None:
        """End without waiting for who is connected, unless it has ended."""
        if self._thread.is_alive():
            self._server.block_on_close = False
            self.leave()


class SlowLoad(Load):
    """Clients that ask without a pause, and some that ask for a slow response."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.slow: list[tuple[int, str]] = []

    def ask_slowly(self, times: int) -> None:
        """Begin slow requests, each on a connection of its own."""
        for _ in range(times):
            thread = threading.Thread(target=self._ask_slowly)
            self.threads.append(thread)
            thread.start()

    def _ask_slowly(self) -> None:
        answer = requests.post(f"{self.url}/slow", data="x", timeout=20)
        self.slow.append((answer.status_code, answer.text))


@pytest.fixture
def announcers(tmp_path: Path) -> Iterator[dict[str, tuple[str, Announce]]]:
    """Yield by service how its source is named in the file, and what tells it who is there."""
    file = tmp_path / "instances.json"

    def by_file(ports: list[int]) -> None:
        beside = tmp_path / "beside.json"
        beside.write_text(json.dumps([f"http://127.0.0.1:{port}" for port in ports]))
        os.replace(beside, file)

    with (
        FakeConsul() as consul,
        FakeKubernetes() as kubernetes,
        NameServer("") as names,
    ):

        def by_dns(ports: list[int]) -> None:
            records = [f"_http._tcp.users 0 IN SRV 0 1 {port} one" for port in ports]
            names.serve("\n".join(["one 0 IN A 127.0.0.1", *records, ""]))

        def by_consul(ports: list[int]) -> None:
            with consul.change():
                consul.entries = []
                for port in ports:
                    consul.register("127.0.0.1", port)

        def by_slices(ports: list[int]) -> None:
            for name in [name for name in kubernetes.slices if int(name) not in ports]:
                kubernetes.delete(name)
            for port in ports:
                if str(port) not in kubernetes.slices:
                    named = {"name": "http", "port": port, "protocol": "TCP"}
                    kubernetes.put(str(port), endpoint("127.0.0.1"), ports=(named,))

        yield {
            "file": (f'"file:{file}"', by_file),
            "srv": (
                f'{{ use = "srv:_http._tcp.users.test", nameservers = ["{names.address}"] }}',
                by_dns,
            ),
            "consul": (f'"consul:{consul.url}/web"', by_consul),
            "kubernetes": (
                f'{{ use = "kubernetes:shop/web:http", server = "{kubernetes.url}" }}',
                by_slices,
            ),
        }


def instances_of(gateway: Served) -> dict[str, set[str]]:
    """Return whom the worker that happens to answer knows, by service."""
    told = requests.get(f"{gateway.url}/_gateway/services", timeout=20).json()
    return {
        service["name"]: set(service.get("instances") or [service["url"]])
        for service in told["services"]
    }


def test_instances_come_and_go_under_load_and_no_request_fails(
    serve: Callable[..., Served], announcers: dict[str, tuple[str, Announce]]
) -> None:
    services = "".join(
        f'[services.{name}]\ndiscover = {source}\nbalance = "round-robin"\n'
        f'[[routes]]\npath = "/{name}"\nservice = "{name}"\n'
        for name, (source, _) in announcers.items()
    )
    with ExitStack() as stack:

        def started() -> Instance:
            instance = Instance()
            stack.callback(instance.drop)
            return instance

        there = {name: [started(), started()] for name in announcers}

        def announce() -> None:
            for name, (_, tell) in announcers.items():
                tell([instance.port for instance in there[name]])

        def followed() -> bool:
            wanted = {
                name: {f"http://127.0.0.1:{instance.port}" for instance in those}
                for name, those in there.items()
            }
            return all(instances_of(gateway) == wanted for _ in range(12))  # of both workers

        announce()
        gateway = serve(f"[gateway]\nthreads = 16\n[admin]\n{services}", workers=2)
        loads = {name: SlowLoad(f"{gateway.url}/{name}") for name in announcers}
        for load in loads.values():
            stack.callback(load.end)
        for _ in range(2):
            new = {name: started() for name in announcers}
            for name, instance in new.items():
                there[name].append(instance)
            announce()
            until(lambda new=new: all(loads[n].has_reached(new[n].port) for n in new))

            for load in loads.values():
                load.ask_slowly(3)
            gone = {name: those.pop(0) for name, those in there.items()}
            announce()
            until(followed)
            for instance in gone.values():
                instance.leave()
        for load in loads.values():
            load.end()

        for name, load in loads.items():
            assert {status for status, _ in load.answers} == {200}, (name, load.answers)
            assert len(load.answers) == 4, name  # each of the instances had its share
            assert [status for status, _ in load.slow] == [200] * 6, name
        assert "Traceback" not in gateway.log


def test_a_source_that_dies_takes_no_instance_along_nor_a_new_worker(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    """The last good answer is in the store: a worker that begins later has it too."""
    with ExitStack() as stack:
        instance = Instance()
        stack.callback(instance.drop)
        consul = stack.enter_context(FakeConsul())
        consul.register("127.0.0.1", instance.port)
        gateway = serve(
            f'[admin]\n[services.web]\ndiscover = "consul:{consul.url}/web"\n'
            '[[routes]]\npath = "/"\nservice = "web"\n',
            workers=1,
        )
        assert requests.post(gateway.url, timeout=20).text == str(instance.port)
        with consul.changed:
            consul.statuses += [500] * 1000
        with consul.change():
            consul.index = 99  # whoever waits is answered, and then with errors

        def discovery() -> dict[str, Any]:
            told: dict[str, Any] = requests.get(
                f"{gateway.url}/_gateway/health", timeout=20
            ).json()["discovery"]["web"]
            return told

        assert until(lambda: discovery().get("error")) == "it answered 500"
        assert requests.post(gateway.url, timeout=20).text == str(instance.port)
        [before] = gateway.workers()
        os.kill(before, 9)
        until(lambda: gateway.workers() not in ([], [before]))
        assert requests.post(gateway.url, timeout=20).text == str(instance.port)
        assert discovery()["instances"] == 1
        assert discovery()["age"] > 0
