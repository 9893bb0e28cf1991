"""The process id, forks and objects that outlive them."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

from wsgigate.runtime import fork


def test_the_process_id_changes_in_a_forked_child() -> None:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(theirs, str(fork.pid).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(ours, 32) == str(child).encode()
    assert fork.pid == os.getpid()
    os.close(ours)
    os.close(theirs)


def test_only_processors_that_the_process_may_use_are_counted() -> None:
    usable = os.sched_getaffinity(0)
    assert fork.processors() == len(usable)
    os.sched_setaffinity(0, {min(usable)})
    try:
        assert fork.processors() == 1
    finally:
        os.sched_setaffinity(0, usable)


def test_settled_objects_are_not_garbage_collected() -> None:
    loaded = [[] for _ in range(100)]
    fork.settle()
    try:
        assert gc.get_freeze_count() > len(loaded)
        assert not any(each is loaded for each in gc.get_objects())
    finally:
        gc.unfreeze()


UWSGI = """
import ctypes, os, sys, types
called = []
uwsgi = types.SimpleNamespace(post_fork_hook=lambda: called.append(os.getpid()))
sys.modules["uwsgi"] = uwsgi
from wsgigate.runtime import fork as process
from wsgigate.middleware.logger import Logger
from wsgigate.store.open import open_store
from wsgigate.testing.fakes import new_environ
from wsgigate.http.wsgi import close_body

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"ok"]

def ask():
    body = logger(new_environ(), lambda status, headers: None)
    assert b"".join(body) == b"ok"
    close_body(body)

logger, store = Logger(app), open_store("memory:")
ask()  # the thread that writes is the parent's
assert logger.flush(30)
with store.lock:  # as a thread of the parent may have it
    child = ctypes.PyDLL(None).fork()
    if not child:
        uwsgi.post_fork_hook()
if not child:
    assert called == [process.pid] == [os.getpid()]
    assert process.unseen
    assert store.lock.acquire(blocking=False)
    ask()
    assert logger.flush(30)
    os._exit(0)
assert not process.unseen
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_without_pythons_hooks_is_noticed() -> None:
    """uWSGI forks so, and calls a hook of its own then."""
    done = subprocess.run([sys.executable, "-c", UWSGI], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"status":200') == 2
