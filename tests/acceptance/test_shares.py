"""Clients that stay, services that hold no more than they may, and slow requests made twice."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.waiting import until
from wsgigate.testing.backend import Backend, Received, reply

GATEWAY = """
[gateway]
name = "shares"
threads = 4
[store]
url = "memory:"
[admin]
prefix = ""
[services.stays]
instances = ["{one}", "{other}"]
sticky = {{ secret = "a secret of the tests", max_age = "1h" }}
[services.slow]
instances = ["{one}"]
max_in_flight = 2
[services.twice]
instances = ["{one}", {{ url = "{other}", weight = 1000 }}]
balance = "weighted"
hedge = {{ after = "20ms" }}
max_in_flight = 4
[[routes]]
path = "/stays"
service = "stays"
[[routes]]
path = "/slow"
service = "slow"
[[routes]]
path = "/twice"
service = "twice"
"""

GEVENT = """
import os
os.environ["WSGIGATE_CONFIG"] = {file!r}
http_parser = "python"
forwarded_allow_ips = forwarder_headers = ""
header_map = "refuse"
"""


class Place:
    """What an instance says: its name, when it is let, or never."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.opened = threading.Event()
        self.silent = False
        self.left = threading.Semaphore(0)

    def __call__(self, connection: socket.socket, request: Received) -> bool:
        if request.target == "/slow":
            assert self.opened.wait(20)
        if request.target == "/twice" and self.silent:
            connection.recv(1)  # until the gateway lets go
            self.left.release()
            return False
        connection.sendall(reply(self.name.encode()))
        return True


Kind = Callable[[str], Any]


@pytest.fixture(params=["gunicorn", "granian", "gevent"])
def start(
    request: pytest.FixtureRequest,
    serve: Callable[..., Any],
    serve_app: Callable[..., Any],
    tmp_path: Path,
) -> Kind:
    def start(text: str) -> Any:
        if request.param != "gevent":
            return serve(text, workers=1, server=request.param)
        file = tmp_path / "gateway.toml"
        file.write_text(text)
        (tmp_path / "settings.py").write_text(GEVENT.format(file=str(file)))
        source = "import wsgigate\napp = wsgigate.load()\n"
        settings = str(tmp_path / "settings.py")
        return serve_app(source, "-k", "gevent", "--workers", "1", "-c", settings)

    return start


def test_each_of_them_under_each_server(start: Kind) -> None:
    one, other = Place("one"), Place("other")
    with Backend(one) as first, Backend(other) as second:
        gateway = start(GATEWAY.format(one=first.url, other=second.url))
        stays_with_its_instance(gateway, [first, second])
        holds_no_more_than_it_may(gateway, first, one)
        is_answered_by_another(gateway, second, other)
        assert "Traceback" not in gateway.log


def stays_with_its_instance(gateway: Any, backends: list[Backend]) -> None:
    for _ in range(4):
        with requests.Session() as browser:
            browser.trust_env = False
            assert len({browser.get(f"{gateway.url}/stays").text for _ in range(8)}) == 1
            assert list(browser.cookies.keys()) == ["wsgigate-stays"]
    for backend in backends:
        assert all(request.value("Cookie") is None for request in backend.requests)


def holds_no_more_than_it_may(gateway: Any, backend: Backend, place: Place) -> None:
    def ask(path: str = "/slow") -> requests.Response:
        return requests.get(gateway.url + path, timeout=30)

    before = len(backend.requests)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(ask) for _ in range(2)]
        backend.wait_for_requests(before + 2)
        refused = ask()
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert refused.json()["error"] == "Too many requests in flight"
        assert ask("/stays").status_code == 200
        told = {each["name"]: each.get("bulkhead") for each in ask("/services").json()["services"]}
        assert told["slow"] == {"inFlight": 2, "maxInFlight": 2, "refused": 1}
        assert told["stays"] is None
        place.opened.set()
        assert [each.result().text for each in waiting] == ["one", "one"]
    until(lambda: ask().status_code == 200)


def is_answered_by_another(gateway: Any, backend: Backend, place: Place) -> None:
    place.silent = True
    answers = {requests.get(gateway.url + "/twice", timeout=30).text for _ in range(3)}
    assert answers == {"one"}
    assert place.left.acquire(timeout=30)  # the connection of what lost is let go
    until(lambda: gateway_is_idle(gateway))


def gateway_is_idle(gateway: Any) -> bool:
    services = requests.get(gateway.url + "/services", timeout=30).json()["services"]
    told = {each["name"]: each.get("bulkhead") for each in services}
    return bool(told["twice"]["inFlight"] == 0)
