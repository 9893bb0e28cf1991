"""The starter that the other tests rely on: one server that does not stop leaves none running."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.servers import Served, Servers

OBEDIENT = """
import socket, sys, time
print("obedient", flush=True)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(600)
"""
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("stubborn", flush=True)
""" + OBEDIENT.replace('"obedient"', '"and still here"')


def runs(served: Served) -> bool:
    try:
        os.killpg(served.process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def program(source: str) -> Callable[[int], list[str]]:
    return lambda port: [sys.executable, "-c", source, str(port)]


def start(servers: Servers, folder: Path, sources: list[str], started: list[Served]) -> None:
    with servers:
        for number, source in enumerate(sources):
            started.append(servers.start(program(source), folder / f"log{number}"))


def test_all_are_stopped_though_one_of_them_does_not(tmp_path: Path) -> None:
    started: list[Served] = []
    with pytest.raises(BaseExceptionGroup, match="1 of 3 servers") as caught:
        start(Servers(within=1.5), tmp_path, [OBEDIENT, STUBBORN, OBEDIENT], started)
    assert len(started) == 3
    assert not any(map(runs, started))
    [error] = caught.value.exceptions
    assert f" {started[1].port} does not stop" in str(error)
    assert "stubborn\nand still here\n" in str(error)


def test_all_are_stopped_when_one_does_not_come_up(tmp_path: Path) -> None:
    started: list[Served] = []
    with pytest.raises(AssertionError, match="the server ended"):
        start(Servers(), tmp_path, [OBEDIENT, "print('no')"], started)
    assert len(started) == 1
    assert not any(map(runs, started))
