"""Concurrent lookups of a name share one, in few threads, also when the resolver hangs."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import Any

import pytest

from wsgigate.client.dial import BackgroundResolver, SocketAddress, literal

Answers = SimpleQueue[list[SocketAddress] | Exception]


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
def test_an_ip_literal_is_not_resolved(host: str, address: SocketAddress | None) -> None:
    assert literal(host, 80) == address


def test_the_addresses_of_a_name_have_the_port_of_each_lookup() -> None:
    answers: Answers = SimpleQueue()
    BackgroundResolver().resolve("localhost", 8080, answers.put)
    found = answers.get(timeout=30)
    assert isinstance(found, list)
    assert (socket.AF_INET, ("127.0.0.1", 8080)) in found


def test_a_failed_lookup_returns_its_error() -> None:
    answers: Answers = SimpleQueue()
    resolver = BackgroundResolver()
    resolver.resolve("no-such-host.invalid", 80, answers.put)
    assert isinstance(answers.get(timeout=30), socket.gaierror)
    resolver.resolve("a" * 70, 80, answers.put)
    assert isinstance(answers.get(timeout=30), (UnicodeError, OSError))


def test_a_resolver_that_hangs_occupies_few_threads_and_resolves_each_name_once() -> None:
    before = set(threading.enumerate())
    go, hanging = threading.Event(), threading.Semaphore(0)
    asked: list[str] = []

    def resolve(host: str, _port: None, **_options: Any) -> list[Any]:
        asked.append(host)
        hanging.release()
        assert go.wait(30)
        return [(socket.AF_INET6, 1, 6, "", ("fd00::1", 0, 0, 3))]

    answers: Answers = SimpleQueue()
    resolver = BackgroundResolver(2, resolve=resolve)
    for port in (1, 2):
        for host in ("a", "b", "c"):
            resolver.resolve(host, port, answers.put)
    for _ in range(2):
        assert hanging.acquire(timeout=30)
    new = set(threading.enumerate()) - before
    threads = [thread for thread in new if thread.name == "wsgigate-resolver"]
    assert len(threads) == 2
    assert sorted(asked) == ["a", "b"]
    go.set()
    found = [answers.get(timeout=30) for _ in range(6)]
    assert found.count([(socket.AF_INET6, ("fd00::1", 1, 0, 3))]) == 3
    assert sorted(asked) == ["a", "b", "c"]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_a_name_is_resolved_again_after_no_thread_could_be_started(
    threadless: Callable[[], AbstractContextManager[None]],
) -> None:
    """A failed start must not leave a waiting list that later lookups of the name would join."""
    answers: Answers = SimpleQueue()
    resolver = BackgroundResolver()
    with threadless():
        resolver.resolve("localhost", 80, answers.put)
    failed = answers.get(timeout=30)
    assert isinstance(failed, OSError)
    assert failed.errno == errno.ENOMEM  # which is no fault of an instance
    resolver.resolve("localhost", 80, answers.put)
    assert isinstance(answers.get(timeout=30), list)


def test_a_running_thread_resolves_a_name_for_which_no_thread_could_be_started(
    threadless: Callable[[], AbstractContextManager[None]],
) -> None:
    go, asked = threading.Event(), threading.Event()

    def resolve(host: str, _port: None, **_options: Any) -> list[Any]:
        asked.set()
        assert go.wait(30)
        return []

    answers: Answers = SimpleQueue()
    resolver = BackgroundResolver(2, resolve=resolve)
    resolver.resolve("one", 80, answers.put)
    assert asked.wait(30)
    with threadless():
        resolver.resolve("two", 80, answers.put)
    go.set()
    assert [answers.get(timeout=30) for _ in range(2)] == [[], []]
