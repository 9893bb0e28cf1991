"""A server that is asked to stop is not ready first, and accepts until its delay is over."""

from __future__ import annotations

from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.interpreter import run_alone
from wsgigate.runtime import drain
from wsgigate.servers.gunicorn import drains, settings


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> drain.DrainMark:
    own = drain.DrainMark()
    monkeypatch.setattr(drain, "SERVER", own)
    return own


class Master:
    """gunicorn's master, which calls its handler of a signal by its name."""

    def __init__(self, delay: float) -> None:
        self.done: list[Any] = []
        self.server = SimpleNamespace(handle_term=lambda: self.done.append("stop"))
        drains(delay, stop_later=self.done.append)(self.server)

    def term(self) -> None:
        self.server.handle_term()


def test_the_first_signal_fails_readiness_and_the_second_one_stops(mark: drain.DrainMark) -> None:
    master = Master(15.0)
    assert not mark
    master.term()
    assert (bool(mark), master.done) == (True, [15.0])
    master.term()
    assert master.done == [15.0, "stop"]


def test_without_a_delay_the_first_signal_stops(mark: drain.DrainMark) -> None:
    master = Master(0.0)
    master.term()
    assert (bool(mark), master.done) == (True, ["stop"])


def test_the_delay_is_that_of_the_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgigate.servers.gunicorn.last_valid", None)
    file = tmp_path / "gateway.toml"
    file.write_text('store.url = "memory:"\n[admin]\n')
    assert callable(settings(str(file))["when_ready"])


def test_workers_see_the_mark_of_their_master() -> None:
    run_alone(
        dedent("""
        import os
        from wsgigate.runtime import drain

        drain.SERVER.prepare()
        asks, answers = os.pipe(), os.pipe()
        worker = os.fork()
        if not worker:
            os.read(asks[0], 1)
            os.write(answers[1], b"1" if drain.SERVER else b"0")
            os._exit(0)
        drain.SERVER.set()
        os.write(asks[1], b"?")
        assert os.read(answers[0], 1) == b"1"
        os.waitpid(worker, 0)
        """)
    )
