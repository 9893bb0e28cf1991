"""The threads of a worker."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from wsgigate.integrations.gate_threads import Threads


def test_results_and_errors_arrive() -> None:
    threads = Threads(2)
    assert threads.submit(divmod, 7, 2).result(10) == (3, 1)
    with pytest.raises(SystemExit):
        threads.submit(sys.exit, 3).result(10)
    assert threads.submit(str, 1).result(10) == "1"
    threads.shutdown()


def test_there_are_as_many_threads_as_there_is_work_for_and_no_more() -> None:
    threads = Threads(2)
    both = threading.Barrier(3)
    release = threading.Event()

    def hold() -> str:
        both.wait(10)
        release.wait(10)
        return threading.current_thread().name

    held = [threads.submit(hold) for _ in range(2)]
    both.wait(10)
    waiting = threads.submit(lambda: threading.current_thread().name)
    assert not waiting.done()
    release.set()
    names = {future.result(10) for future in held}
    assert len(names) == 2
    assert waiting.result(10) in names
    threads.shutdown()


STUCK = """
import threading
from wsgigate.integrations.gate_threads import Threads
began = threading.Event()
def stuck():
    began.set()
    threading.Event().wait()
Threads(1).submit(stuck)
began.wait()
"""


def test_a_process_ends_whatever_its_threads_wait_for() -> None:
    assert subprocess.run([sys.executable, "-c", STUCK], timeout=30, check=False).returncode == 0
