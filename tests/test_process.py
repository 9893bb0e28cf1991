"""This process: what is known of it, and what it has loaded for good."""

from __future__ import annotations

import gc
import os

from wsgigate import process


def test_a_child_knows_that_it_is_another_process() -> None:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(theirs, str(process.pid).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(ours, 32) == str(child).encode()
    assert process.pid == os.getpid()
    os.close(ours)
    os.close(theirs)


def test_of_the_processors_those_count_that_may_be_used() -> None:
    usable = os.sched_getaffinity(0)
    assert process.processors() == len(usable)
    os.sched_setaffinity(0, {min(usable)})
    try:
        assert process.processors() == 1
    finally:
        os.sched_setaffinity(0, usable)


def test_what_is_loaded_is_looked_at_no_more() -> None:
    loaded = [[] for _ in range(100)]
    process.settle()
    try:
        assert gc.get_freeze_count() > len(loaded)
        assert not any(each is loaded for each in gc.get_objects())
    finally:
        gc.unfreeze()
