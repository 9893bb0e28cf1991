"""Equal calls at the same time are made once, and every waiting thread gets their end."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.support.waiting import until
from wsgigate.runtime.shared_calls import CallAbandoned, SharedCalls


class Held:
    """A call that is held back until it is released; counts how often it is made."""

    def __init__(self, end: Callable[[], str]) -> None:
        self.release = threading.Event()
        self.made = 0
        self._end = end

    def __call__(self) -> str:
        self.made += 1
        self.release.wait(30)
        return self._end()


def ends(call: Held, threads: int = 4) -> list[str]:
    """Make the call in several threads at the same time; return how it ended in each."""
    calls = SharedCalls[str]()
    found: list[str] = []

    def make() -> None:
        try:
            found.append(calls.make(b"key", call, 30))
        except BaseException as error:
            found.append(f"{type(error).__name__}: {error}")

    running = [threading.Thread(target=make) for _ in range(threads)]
    running[0].start()
    until(lambda: call.made == 1)
    for thread in running[1:]:
        thread.start()
    assert calls.make(b"other", lambda: "not delayed", 0) == "not delayed"
    # Those that have not arrived yet would make the call again, and get the same end.
    call.release.set()
    for thread in running:
        thread.join(30)
    assert not len(calls)
    return found


def raised(error: BaseException) -> Callable[[], str]:
    def end() -> str:
        raise error

    return end


@pytest.mark.parametrize(
    ("end", "found"),
    [(lambda: "result", "result"), (raised(LookupError("no")), "LookupError: no")],
)
def test_every_thread_gets_the_end_of_the_call(end: Callable[[], str], found: str) -> None:
    assert set(ends(Held(end))) == {found}


def test_a_thread_that_is_ended_by_its_server_leaves_no_other_waiting() -> None:
    found = ends(Held(raised(SystemExit(1))))
    assert found.count("SystemExit: 1") >= 1
    assert set(found) <= {
        "SystemExit: 1",
        "CallAbandoned: the thread that made the call was ended",
    }


def test_patience_ends() -> None:
    calls = SharedCalls[str]()
    held = Held(lambda: "late")
    thread = threading.Thread(target=lambda: calls.make(b"key", held, 30))
    thread.start()
    until(lambda: held.made == 1)
    with pytest.raises(CallAbandoned, match="took too long"):
        calls.make(b"key", held, 0.01)
    held.release.set()
    thread.join(30)
    assert calls.make(b"key", lambda: "anew", 0) == "anew"


def test_nothing_is_in_progress_after_a_fork() -> None:
    calls = SharedCalls[str]()
    held = Held(lambda: "parent")
    thread = threading.Thread(target=lambda: calls.make(b"key", held, 30))
    thread.start()
    until(lambda: held.made == 1)
    calls.after_fork()
    assert calls.make(b"key", lambda: "child", 0) == "child"
    held.release.set()
    thread.join(30)


def test_a_call_that_hangs_holds_a_bounded_number_of_threads() -> None:
    calls = SharedCalls[str](most=2, brief=0)
    held = Held(lambda: "late")
    found: list[str] = []

    def make(patience: float) -> None:
        try:
            found.append(calls.make(b"key", held, patience))
        except CallAbandoned as error:
            found.append(str(error))

    patient = [threading.Thread(target=make, args=(30,)) for _ in range(6)]
    patient[0].start()
    until(lambda: held.made == 1)
    for thread in patient[1:]:
        thread.start()
    until(lambda: len(found) == 3)
    assert found == ["an equal call took too long"] * 3
    held.release.set()
    for thread in patient:
        thread.join(30)
    assert found[3:] == ["late"] * 3
    assert held.made == 1
