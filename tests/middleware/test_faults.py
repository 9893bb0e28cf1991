"""Faults are injected into the selected requests only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from wsgigate import FaultRules, Faults
from wsgigate.http.wsgi import REASON, SHAPED
from wsgigate.testing.fakes import Server, new_environ

BOTH = FaultRules(delay=2, delay_percent=50, abort_status=500, abort_percent=20)


def app(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"good"]


def faults(*draws: float, rules: FaultRules = BOTH, **options: Any) -> tuple[Faults, list[float]]:
    slept: list[float] = []
    numbers = iter(draws)
    options = {"enabled": True, "sleep": slept.append, **options}
    return Faults(app, rules, random=lambda: next(numbers), **options), slept


@pytest.mark.parametrize(
    ("draws", "status", "slept", "noted"),
    [
        ((0.5, 0.2), "200 OK", [], None),
        ((0.49, 0.2), "200 OK", [2], "fault=delay"),
        ((0.5, 0.19), "500 Internal Server Error", [], "fault=500"),
        ((0.49, 0.19), "500 Internal Server Error", [2], "fault=delay fault=500"),
    ],
)
def test_random_numbers_choose_delayed_and_aborted_requests(
    draws: tuple[float, float], status: str, slept: list[float], noted: str | None
) -> None:
    made, waits = faults(*draws)
    environ = new_environ()
    answer = Server().serve(made, environ)
    assert (answer.status, waits, environ.get(SHAPED)) == (status, slept, noted)
    aborted = not status.startswith("200")
    assert (("X-Gateway-Fault", "abort") in answer.headers) is aborted
    assert (environ.get(REASON) == "a fault was injected") is aborted
    assert made.delayed == 0


def test_nothing_is_done_unless_it_is_enabled() -> None:
    made = Faults(app, FaultRules(abort_percent=100))
    assert Server().serve(made, new_environ()).status == "200 OK"


@pytest.mark.parametrize(
    ("fields", "spoiled"),
    [
        ({}, False),
        ({"HTTP_X_DRILL": "yes"}, False),
        ({"HTTP_X_DRILL": "no", "HTTP_X_TEAM": "a"}, False),
        ({"HTTP_X_DRILL": "yes", "HTTP_X_TEAM": "a"}, True),
    ],
)
def test_only_requests_with_the_fields_get_faults(fields: dict[str, str], spoiled: bool) -> None:
    rules = FaultRules(abort_percent=100)
    made, _ = faults(0, 0, rules=rules, when={"X-Drill": "yes", "X-Team": "a"})
    answer = Server().serve(made, {**new_environ(), **fields})
    assert answer.status.startswith("503" if spoiled else "200")


def test_at_most_the_configured_threads_are_delayed() -> None:
    go, waiting = threading.Event(), threading.Semaphore(0)

    def sleep(seconds: float) -> None:
        waiting.release()
        go.wait(30)

    rules = FaultRules(delay=60, delay_percent=100)
    made = Faults(app, rules, enabled=True, max_delayed=2, sleep=sleep, random=lambda: 0.5)
    threads = [
        threading.Thread(target=lambda: Server().serve(made, new_environ())) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
        assert waiting.acquire(timeout=30)
    environ = new_environ()
    assert Server().serve(made, environ).status == "200 OK"
    assert (made.delayed, made.undelayed, SHAPED in environ) == (2, 1, False)
    go.set()
    for thread in threads:
        thread.join(30)
    assert made.delayed == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"max_delayed": 0}, "max_delayed: 1 or more"), ({"when": {"X Y": "1"}}, "when: 'X Y'")],
)
def test_invalid_settings_raise(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Faults(app, BOTH, **settings)


def test_a_forked_worker_counts_its_own(in_child: Callable[[Callable[[], bool]], bool]) -> None:
    """Those that waited in its parent were taken for its own, so none of its own waited."""
    waits, go = threading.Event(), threading.Event()

    def sleep(_seconds: float) -> None:
        waits.set()
        assert go.wait(30)

    rules = FaultRules(delay=2, delay_percent=100)
    made = Faults(app, rules, enabled=True, max_delayed=1, sleep=sleep)
    thread = threading.Thread(target=lambda: Server().serve(made, new_environ()))
    thread.start()
    assert waits.wait(30)

    def lets_one_wait() -> bool:
        go.set()
        Server().serve(made, new_environ())
        return (made.delayed, made.undelayed) == (0, 0)

    assert in_child(lets_one_wait)
    go.set()
    thread.join(30)
    assert (made.delayed, made.undelayed) == (0, 0)
