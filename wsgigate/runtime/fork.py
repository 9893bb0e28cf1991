"""What happens to the objects of a process when it forks, or when gevent patches Python.

Theory of operation
-------------------

A server with ``--preload`` makes the whole gateway before it forks its workers. An object that
holds a lock, a thread, a socket or a count is then used in a process that it does not fit. Two
events make it unfit, and each object registered here is renewed after both:

- A fork. A lock that a thread of the parent holds stays locked in the child for ever, since that
  thread does not exist there. Connections and counts of requests in flight belong to the parent.
- gevent's monkey patching. ``gunicorn -k gevent --preload`` loads the app in the master, forks, and
  patches in the worker. A lock, condition, event or queue made before is one of the system's
  threads: a greenlet that waits for it blocks the only thread, and with it every other greenlet,
  including the one that would release it.

uWSGI forks by itself and runs Python's fork hooks only with ``--py-call-osafterfork``. It calls
``uwsgi.post_fork_hook`` in any case, so :func:`notice_fork` is installed there. Such a fork is
called *unseen* below: no hook ran before it, so a store may have been in the middle of a write.

Rules:

1. A constructor makes its locks with :func:`renewed`, or in ``after_fork`` with
   :func:`renew_at_fork`. No other lock may be kept.
2. A thread is started by its first use in a process, never by a constructor.
3. A store is quiescent during a fork (:func:`quiesce_at_fork`): the parent acquires the locks of
   all stores before it forks, and parent and child release them afterwards. Otherwise the child
   could inherit a half-written structure, and LMDB forbids an open environment to cross a fork.
4. :data:`pid` changes only together with the renewal. So no object compares process ids: it is
   renewed. An unseen fork is also missed by uWSGI's hook if an app replaces that hook, so the code
   calls :func:`notice_fork` where a missed fork would do harm: when the gateway starts in a
   process, before the connections to upstreams and to Redis are used (two processes on one
   connection receive each other's answers), and before the leader's name is (two processes would
   lead). The call costs a quarter of a microsecond. That is too much for LMDB, whose reads take
   three times as long: a parent that uses such a store before it forks needs one of the hooks.
   :func:`at_exit` is for the one thing that cannot be renewed: a callback of ``atexit``, which
   every child inherits.

A lock that is not renewed breaks them; tests/runtime/test_gevent_patching.py searches for such.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Protocol

__all__ = [
    "Forkable",
    "Renewable",
    "after_patching",
    "after_unseen_fork",
    "at_exit",
    "notice_fork",
    "pid",
    "processors",
    "quiesce_at_fork",
    "renew_at_fork",
    "renewed",
    "settle",
    "tested",
    "unseen",
]


class Renewable(Protocol):
    """An object whose locks, threads, connections or counts belong to one process."""

    def after_fork(self) -> None:
        """Replace in the child what belongs to the parent; also called after gevent has patched."""


pid = os.getpid()
"""The id of this process, without a system call per request.

Read it as ``fork.pid``: a fork changes it, so ``from ... import pid`` would keep the parent's."""

_renewables: weakref.WeakSet[Renewable] = weakref.WeakSet()

_parts: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()

_patching_callbacks: list[Callable[[], object]] = []

_listening = False

_unseen: list[Callable[[], object]] = []

unseen = False
"""Whether this process was created by a fork that did not run Python's fork hooks."""


def renew_at_fork(renewable: Renewable) -> None:
    """Call ``after_fork`` of *renewable* in each child process, for as long as it is alive."""
    _renewables.add(renewable)
    _listen()


def renewed(owner: object, **kinds: str) -> None:
    """Set attributes of *owner* to new objects of ``threading``, now and after each fork.

    :param kinds: Attribute name to class name, such as ``_lock="Lock"``.
    """
    _parts.setdefault(owner, {}).update(kinds)
    _make(owner, kinds)
    _listen()


def at_exit(callback: Callable[[], object]) -> Callable[[], None]:
    """Call *callback* at the end of this process, and not at that of a child.

    :returns: A function that cancels this.
    """
    owner = pid

    def call() -> None:
        if pid == owner:
            callback()

    atexit.register(call)
    return partial(atexit.unregister, call)


def after_patching(callback: Callable[[], object]) -> None:
    """Call *callback* each time gevent has patched ``threading``."""
    _patching_callbacks.append(callback)


_tested: bool | None = None


def tested() -> bool:
    """Return whether a test runner runs in this process: pytest, Django's, or unittest's.

    A server started by a test does not count: it inherits the runner's environment, but has not
    loaded the runner. The first result is cached.
    """
    global _tested
    if _tested is None:
        _tested = has_test_runner()
    return _tested


def has_test_runner() -> bool:
    """Return whether a test runner is at work in this process right now."""
    modules, environ = sys.modules, os.environ
    if "_pytest.config" in modules and (
        "PYTEST_VERSION" in environ or "PYTEST_CURRENT_TEST" in environ
    ):
        return True  # PYTEST_VERSION: during all of a run, from pytest 8.2 on
    # what setup_test_environment() sets and teardown_test_environment() removes
    state = getattr(modules.get("django.test.utils"), "_TestState", None)
    if getattr(state, "saved_data", None) is not None:
        return True
    spec = getattr(modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", "") == "unittest.__main__"


def after_unseen_fork(callback: Callable[[], object]) -> None:
    """Call *callback* in a child whose fork did not run Python's fork hooks.

    For callbacks that are also registered with ``os.register_at_fork``.
    """
    _unseen.append(callback)


def notice_fork() -> bool:
    """Renew all registered objects if this process was forked without Python's fork hooks.

    :returns: Whether it was, now or at an earlier call.
    """
    global unseen
    if pid != os.getpid():
        _after_fork()
        unseen = True
        for callback in _unseen:
            callback()
    return unseen


def processors() -> int:
    """Return the number of processors this process may use, which a container may limit."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def settle() -> None:
    """Exclude everything a worker has loaded before it serves from garbage collection.

    These objects stay for the life of the process. A full collection that traverses them stops
    every request in flight for longer than a request takes.
    """
    gc.collect()
    gc.freeze()


def _make(owner: object, kinds: dict[str, str]) -> None:
    for name, kind in kinds.items():
        setattr(owner, name, getattr(threading, kind)())


def _renew() -> None:
    for owner, kinds in list(_parts.items()):
        _make(owner, kinds)
    for renewable in list(_renewables):
        renewable.after_fork()


def _after_fork() -> None:
    global pid
    pid = os.getpid()
    _listen()  # gunicorn's gevent worker has loaded gevent by now, and patches next
    _renew()


def _listen() -> None:
    """Subscribe to gevent's patching events if gevent is loaded; it is never imported for that."""
    global _listening
    if not _listening and "gevent" in sys.modules:
        try:
            subscribers: list[Callable[[object], object]] = import_module(
                "gevent.events"
            ).subscribers
        except (ImportError, AttributeError):
            return  # gevent is being imported right now
        subscribers.append(_patched)
        _listening = True


def _patched(event: object) -> None:
    kind = type(event).__name__
    threads = getattr(event, "module_name", "") == "threading"
    if kind == "GeventDidPatchAllEvent" or (kind == "GeventDidPatchModuleEvent" and threads):
        _renew()
        for callback in _patching_callbacks:
            callback()


def _hook_uwsgi() -> None:
    uwsgi: Any = sys.modules.get("uwsgi")  # exists in a process of uWSGI only
    if uwsgi is None:
        return
    before = getattr(uwsgi, "post_fork_hook", None)

    def hook() -> None:
        notice_fork()
        if before is not None:
            before()

    uwsgi.post_fork_hook = hook
    try:  # uwsgidecorators replaces the hook when imported, so it is imported first
        import_module("uwsgidecorators").postfork_chain.append(notice_fork)
    except Exception:  # noqa: S110 it is missing, or cannot be imported without a master
        pass


os.register_at_fork(after_in_child=_after_fork)

_hook_uwsgi()


# Stores are quiescent during a fork: rule 3 above.


class Forkable(Protocol):
    """A store whose lock is held while its process forks."""

    lock: threading.RLock

    def before_fork(self) -> None:
        """Release, with the lock held, what must not cross a fork."""

    def after_unseen_fork(self) -> None:
        """Repair, in the child, the state after a fork without ``before_fork``."""


_guard = threading.Lock()

_forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()

_quiescent: list[Forkable] | None = None


def quiesce_at_fork(forkable: Forkable) -> None:
    """Hold the lock of *forkable* during each fork of this process, for as long as it is alive."""
    with _guard:
        _forkables.add(forkable)


def _before() -> None:
    global _quiescent
    _guard.acquire()
    _quiescent = list(_forkables)
    for forkable in _quiescent:
        forkable.lock.acquire()
        forkable.before_fork()


def _after() -> None:
    global _quiescent
    quiescent, _quiescent = _quiescent or [], None
    for forkable in quiescent:
        forkable.lock.release()
    _guard.release()


def _after_in_child() -> None:
    global _guard
    if _quiescent is not None:
        _after()
        return
    # an unseen fork (uWSGI): no lock was acquired before it, and any of them may be held
    _guard = threading.Lock()
    for forkable in list(_forkables):
        forkable.lock = threading.RLock()
        forkable.after_unseen_fork()


def _after_patching() -> None:
    """Replace the locks by those that greenlets can wait for; no call runs while gevent patches."""
    global _guard
    _guard = threading.Lock()
    for forkable in list(_forkables):
        forkable.lock = threading.RLock()


after_patching(_after_patching)

after_unseen_fork(_after_in_child)

os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
