"""The commands that change a running gateway, by the store that they share with its workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.test import Client

import wsgigate
from wsgigate.cli import main
from wsgigate.gateway import Gateway

FILE = """\
[store]
url = "lmdb:data"
[admin]
[services.orders]
instances = ["http://10.0.0.4:8000", "http://10.0.0.5:8000"]
breaker = {}
[services.users]
discover = "file:users.json"
[[routes]]
path = "/orders"
service = "orders"
[[routes]]
path = "/demo"
app = "wsgiref.simple_server:demo_app"
middleware = [{ use = "limiter", quota = "2 per hour", name = "demo" }]
"""

PEER = {"REMOTE_ADDR": "192.0.2.1"}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "gateway.toml"
    path.write_text(FILE)
    (tmp_path / "users.json").write_text("[]")
    return str(path)


@pytest.fixture
def gateway(file: str) -> Iterator[Gateway]:
    built = wsgigate.load(file)
    yield built
    built.close()


def available(file: str) -> list[str]:
    """Return the instances to which a worker that starts now sends requests."""
    gateway = wsgigate.load(file)
    gateway.start()
    found = [instance.address for instance in gateway.pools["orders"].available()]
    gateway.close()
    return found


@pytest.mark.parametrize("address", ["10.0.0.4:8000", "http://10.0.0.4:8000"])
def test_a_worker_sends_nothing_to_a_drained_instance(
    file: str, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["drain", file, "orders", address, "--for", "10m"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("orders http://10.0.0.4:8000: drained until 20")
    assert available(file) == ["10.0.0.5:8000"]
    assert main(["undrain", file, "orders", address]) == 0
    assert capsys.readouterr().out == "orders http://10.0.0.4:8000: active\n"
    assert available(file) == ["10.0.0.4:8000", "10.0.0.5:8000"]


def test_a_discovered_instance_is_named_by_its_url(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["drain", file, "users", "10.0.0.9:80"]) == 2
    assert "give the URL, such as http://10.0.0.9:80" in capsys.readouterr().err
    assert main(["drain", file, "users", "http://10.0.0.9:80", "--eject"]) == 0
    assert capsys.readouterr().out == "users http://10.0.0.9: ejected\n"


def test_a_circuit_is_forced_released_and_reset(
    file: str, capsys: pytest.CaptureFixture[str], gateway: Gateway
) -> None:
    assert main(["breaker", file, "open", "orders"]) == 0
    assert capsys.readouterr().out == "orders: OPEN: forced open by the operator\n"
    response = Client(gateway).get("/orders")
    assert (response.status_code, response.json["error"]) == (503, "Circuit breaker open")  # type: ignore[index]
    assert main(["breaker", file, "close", "orders", "--for", "1h"]) == 0
    assert ": forced closed by the operator" in capsys.readouterr().out
    assert main(["breaker", file, "auto", "orders"]) == 0
    assert main(["breaker", file, "reset", "orders"]) == 0
    assert capsys.readouterr().out.endswith("orders: CLOSED: reset by the operator\n")


def test_a_caller_gets_its_quota_again(
    file: str, capsys: pytest.CaptureFixture[str], gateway: Gateway
) -> None:
    def ask() -> int:
        return Client(gateway).get("/demo", environ_base=PEER, buffered=True).status_code

    assert [ask() for _ in range(3)] == [200, 200, 429]
    assert main(["limits", file, "show", "demo", "192.0.2.1"]) == 0
    assert main(["limits", file, "clear", "demo", "192.0.2.1"]) == 0
    assert capsys.readouterr().out == "demo: 0 of 2 left\ndemo: 2 of 2 left\n"
    assert ask() == 200


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["drain", "order", "10.0.0.4:8000"], "is no service of this gateway; did you mean"),
        (["drain", "orders", "10.0.0.9:8000"], "its instances are: 10.0.0.4:8000, 10.0.0.5:8000"),
        (["drain", "orders", "10.0.0.4:8000", "--for", "soon"], "expected a duration"),
        (["breaker", "open", "users"], "is no service with a breaker of this gateway"),
        (["breaker", "auto", "orders", "--for", "1h"], "--for: allowed with open and close only"),
        (["limits", "clear", "demos", "192.0.2.1"], "is no limit of this gateway"),
    ],
)
def test_an_error_names_what_there_is(
    file: str, arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = arguments
    assert main([command, file, *rest]) == 2
    assert error in capsys.readouterr().err


def test_a_store_in_memory_or_no_admin_table_is_an_error(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path(file).read_text()
    Path(file).write_text(text.replace("lmdb:data", "memory:"))
    assert main(["drain", file, "orders", "10.0.0.4:8000"]) == 2
    assert "private to each worker" in capsys.readouterr().err
    Path(file).write_text(text.replace("[admin]\n", ""))
    assert main(["drain", file, "orders", "10.0.0.4:8000"]) == 2
    assert "has no [admin] table" in capsys.readouterr().err
