"""The example of services that come and go, as its README has it, but for ports that are free."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from threading import Event, Thread

import pytest
import requests

from tests.support.ports import free_port
from tests.support.servers import Served, Servers, home
from tests.support.waiting import until

EXAMPLE = Path(__file__).parents[2] / "examples" / "registry"
README = (EXAMPLE / "README.rst").read_text()
BLOCKS = [dedent(block).strip() for block in re.findall(r"::\n\n((?:    .*\n|\n)+)", README)]
PRINTED = ("3000", "3001", "3002", "3004", "3011")
TOKEN = "registry-token-of-the-tests"


class Example:
    """The example in a folder of its own; a line of the README starts what it starts."""

    def __init__(self, folder: Path, servers: Servers) -> None:
        self.ports = {printed: free_port() for printed in PRINTED}
        self._servers = servers
        self._folder = folder
        shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
        for file in (*folder.glob("*.py"), *folder.glob("*.toml")):
            file.write_text(self.here(file.read_text()))

    def here(self, text: str) -> str:
        """Return what is printed with the ports of this run."""
        return re.sub(r"\b30\d\d\b", lambda match: str(self.ports[match[0]]), text)

    def start(self, line: str, port: str) -> Served:
        assert line in BLOCKS
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {"PATH": path, "REGISTRY_TOKEN": TOKEN, **home(self._folder)}
        env["REGISTRY_URL"] = f"http://127.0.0.1:{self.ports['3004']}"
        return self._servers.start(
            ["sh", "-c", f"exec env {self.here(line)}"],
            self._folder / f"log{self._servers.number}",
            env,
            port=self.ports[port],
        )

    def get(self, path: str, port: str = "3000") -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.ports[port]}{path}", timeout=30)

    def there(self) -> dict[str, list[str]]:
        """Return the statuses of all instances by service."""
        services = self.get("/services", "3004").json()["services"]
        return {name: [each["status"] for each in found] for name, found in services.items()}

    def answering(self) -> set[int]:
        """Return the ports of the users services that the gateway's answers come from."""
        return {self.get("/users/ann").json()["port"] for _ in range(20)}


USERS = "gunicorn -c users_conf.py users:app"
PRODUCTS = (
    "wsgigate register --service products --port 3002 -- "
    "python3 -m http.server 3002 --bind 127.0.0.1 --directory products"
)


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Example]:
    with Servers() as servers:
        yield Example(tmp_path, servers)


def shown() -> Iterator[tuple[str, str]]:
    """Yield the paths that the README asks for, with the answers it shows."""
    [block] = [block for block in BLOCKS if block.startswith("$ curl")]
    lines = block.splitlines()
    for asked, answer in zip(lines[::2], lines[1::2], strict=True):
        yield asked.removeprefix("$ curl http://127.0.0.1:3000"), answer


def test_services_come_and_go_and_no_request_fails(example: Example) -> None:
    registry = example.start("wsgigate registry --bind 127.0.0.1:3004", "3004")
    users = example.start(USERS, "3001")
    products = example.start(PRODUCTS, "3002")
    until(lambda: example.there() == {"users": ["UP"], "products": ["UP"]})
    gateway = example.start("wsgigate run gateway.toml", "3000")
    until(lambda: example.get("/products/catalog.json").status_code == 200)
    for path, answer in shown():
        assert json.loads(example.get(path).text) == json.loads(example.here(answer))

    more = example.start(f"PORT=3011 {USERS}", "3011")
    until(lambda: example.answering() == {users.port, more.port})
    statuses = while_asking(example, lambda: stop(users))
    assert set(statuses) == {200}
    assert example.answering() == {more.port}

    os.kill(registry.process.pid, signal.SIGTERM)
    registry.process.wait(25)
    assert example.answering() == {more.port}
    again = example.start("wsgigate registry --bind 127.0.0.1:3004", "3004")
    until(lambda: example.there() == {"users": ["UP"], "products": ["UP"]})
    for served in (products, more):
        served.signal(signal.SIGTERM)
    until(lambda: example.there() == {})
    for served in (gateway, again):
        served.stop()


def stop(served: Served) -> None:
    served.signal(signal.SIGTERM)
    served.process.wait(25)


def while_asking(example: Example, act: Callable[[], object]) -> list[int]:
    """Return the statuses of requests that were made all the time that *act* took."""
    statuses: list[int] = []
    done = Event()

    def ask() -> None:
        while not done.is_set():
            statuses.append(example.get("/users/ann").status_code)

    threads = [Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        act()
    finally:
        done.set()
        for thread in threads:
            thread.join(20)
    assert len(statuses) > 10
    return statuses
