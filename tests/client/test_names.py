"""Resolver are looked up once for all who wait, and by few threads whatever the resolver does."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import Any

import pytest

from wsgigate.client.dial import Address, Resolver, literal

Answers = SimpleQueue[list[Address] | Exception]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", (socket.AF_INET, ("127.0.0.1", 80))),
        ("::1", (socket.AF_INET6, ("::1", 80))),
        ("localhost", None),
        ("127.1", None),
        ("1.2.3.4.example", None),
    ],
)
def test_an_address_needs_no_looking_up(host: str, address: Address | None) -> None:
    assert literal(host, 80) == address


def test_a_name_that_exists_has_addresses_with_the_port_of_who_asked() -> None:
    answers: Answers = SimpleQueue()
    Resolver().resolve("localhost", 8080, answers.put)
    found = answers.get(timeout=10)
    assert isinstance(found, list)
    assert (socket.AF_INET, ("127.0.0.1", 8080)) in found


def test_what_failed_is_told() -> None:
    answers: Answers = SimpleQueue()
    resolver = Resolver()
    resolver.resolve("no-such-host.invalid", 80, answers.put)
    assert isinstance(answers.get(timeout=10), socket.gaierror)
    resolver.resolve("a" * 70, 80, answers.put)
    assert isinstance(answers.get(timeout=10), (UnicodeError, OSError))


def test_a_resolver_that_hangs_is_asked_once_a_name_and_by_few_threads() -> None:
    go, hanging = threading.Event(), threading.Semaphore(0)
    asked: list[str] = []

    def resolve(host: str, _port: None, **_options: Any) -> list[Any]:
        asked.append(host)
        hanging.release()
        assert go.wait(10)
        return [(socket.AF_INET6, 1, 6, "", ("fd00::1", 0, 0, 3))]

    answers: Answers = SimpleQueue()
    resolver = Resolver(2, resolve=resolve)
    for port in (1, 2):
        for host in ("a", "b", "c"):
            resolver.resolve(host, port, answers.put)
    for _ in range(2):
        assert hanging.acquire(timeout=10)
    threads = [thread for thread in threading.enumerate() if thread.name == "wsgigate-resolver"]
    assert len(threads) == 2
    assert sorted(asked) == ["a", "b"]
    go.set()
    found = [answers.get(timeout=10) for _ in range(6)]
    assert found.count([(socket.AF_INET6, ("fd00::1", 1, 0, 3))]) == 3
    assert sorted(asked) == ["a", "b", "c"]
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_a_name_is_looked_up_again_after_no_thread_was_to_be_had(
    threadless: Callable[[], AbstractContextManager[None]],
) -> None:
    """Whoever asked for it was forgotten, and whoever asked later waited with them for ever."""
    answers: Answers = SimpleQueue()
    resolver = Resolver()
    with threadless():
        resolver.resolve("localhost", 80, answers.put)
    failed = answers.get(timeout=10)
    assert isinstance(failed, OSError)
    assert failed.errno == errno.ENOMEM  # which is no fault of an instance
    resolver.resolve("localhost", 80, answers.put)
    assert isinstance(answers.get(timeout=10), list)


def test_a_thread_that_runs_looks_up_what_no_other_could_be_had_for(
    threadless: Callable[[], AbstractContextManager[None]],
) -> None:
    go, asked = threading.Event(), threading.Event()

    def resolve(host: str, _port: None, **_options: Any) -> list[Any]:
        asked.set()
        assert go.wait(10)
        return []

    answers: Answers = SimpleQueue()
    resolver = Resolver(2, resolve=resolve)
    resolver.resolve("one", 80, answers.put)
    assert asked.wait(10)
    with threadless():
        resolver.resolve("two", 80, answers.put)
    go.set()
    assert [answers.get(timeout=10) for _ in range(2)] == [[], []]
