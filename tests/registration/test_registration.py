"""The arguments of a registration, and the leader among the processes of a machine."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.threads import started
from tests.support.waiting import until
from wsgigate import Registration
from wsgigate.registration import MachineLeader, connector
from wsgigate.registration.entry import Entry
from wsgigate.testing.backend import Backend

ENTRY = Entry(service="users", port=3001)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"service": "a b"}, "serviceName"),
        ({"port": 65_536}, "port"),
        ({"tags": "blue"}, "tags must be a list such as"),
        ({"tags": ["", "b"]}, "tags"),
        ({"drain": -1}, "drain must be 0 to 300 seconds"),
        ({"registry": "registry:3004"}, "the registry's URL"),
        ({"registry": []}, "registry is empty"),
        ({"registry": ["http://a", "b"]}, "the registry's URL"),
        ({"token": "two words"}, "token must be 1 to 4096 visible characters"),
        ({"metadata": {"a": float("nan")}}, "metadata"),
    ],
)
def test_an_invalid_argument_is_an_error_that_names_it(wrong: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named) as raised:
        Registration(**{"service": "users", "port": 3001, **wrong})
    assert "two words" not in str(raised.value)


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"REGISTRY_URL": "registry"}, "REGISTRY_URL: the registry's URL must be"),
        ({"REGISTRY_URL": " , "}, "REGISTRY_URL is empty"),
        ({"REGISTRY_TOKEN": "secret word"}, "REGISTRY_TOKEN must be 1 to 4096 visible"),
    ],
)
def test_an_invalid_environment_variable_is_an_error_of_connect(
    env: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    connect = connector(ENTRY)
    with pytest.raises(ValueError, match=named) as raised:
        connect()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "env", "found"),
    [
        (None, "", ("http://127.0.0.1:3004",)),
        (None, "http://a:1/, https://b/r", ("http://a:1", "https://b/r")),
        ("http://c", "http://a", ("http://c",)),
        (["http://c", "http://d/"], "http://a", ("http://c", "http://d")),
    ],
)
def test_the_urls_are_those_of_the_argument_or_the_environment(
    given: Any, env: str, found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_URL", env)
    assert connector(ENTRY, given)().registries == found


def test_a_missing_authorities_file_is_an_error_of_connect(tmp_path: Path) -> None:
    connect = connector(ENTRY, "https://registry", ca=str(tmp_path / "none.pem"))
    with pytest.raises(ValueError, match=r"none\.pem"):
        connect()


def test_one_of_the_processes_that_share_a_store_leads(tmp_path: Path) -> None:
    first, second = (MachineLeader(f"lmdb:{tmp_path}/store", "users") for _ in range(2))
    other = MachineLeader(f"lmdb:{tmp_path}/store", "products")
    assert first.take()
    assert first.take()
    assert not second.take()
    assert other.take()
    first.release()
    assert second.take()
    assert not first.take()


@pytest.mark.parametrize("store", ["lmdb:/proc/nowhere", "bogus:"])
def test_while_the_store_fails_each_process_leads(
    store: str, caplog: pytest.LogCaptureFixture
) -> None:
    lead = MachineLeader(store, "users")
    assert lead.take()
    assert lead.take()
    lead.release()
    [message] = caplog.messages
    assert message.startswith("Store unavailable: each worker sends its own heartbeats: ")


@pytest.fixture
def _signals() -> Iterator[None]:
    """Leave the handlers of this process as they are found."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
def test_a_registration_starts_once_and_can_be_stopped(
    tmp_path: Path, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    registration = Registration(
        "users", port=3001, listens=0, registry=backend.url, store=f"lmdb:{tmp_path}/store"
    )
    with caplog.at_level(logging.INFO, "wsgigate.registration"):
        assert registration.start() is registration.start() is registration
        assert len(started("wsgigate-registration")) == 1
        backend.wait_for_requests(1)
        registration.stop()
        registration.stop()
    assert [request.method for request in backend.requests] == ["POST", "DELETE"]
    until(lambda: not started("wsgigate-registration"))
