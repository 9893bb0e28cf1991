"""This process: which one it is, what it begins anew, and what it has loaded for good.

What an app makes when it is loaded may be used in a process where it no longer fits. Two events
make it unfit, and each object that is registered here is renewed after both:

- A fork. A lock that a thread of the parent holds stays locked in the child for good, and
  connections and counts of requests in flight are the parent's.
- uWSGI forks by itself, and tells Python only with ``--py-call-osafterfork``. It calls
  ``uwsgi.post_fork_hook`` in any case, which stands in for that here.
- gevent's patching of Python. ``gunicorn -k gevent --preload`` loads the app in the master, forks,
  and patches in the worker: a lock, a condition, an event or a queue made before that is one of the
  system's threads. A greenlet that waits for it stops the only thread there is, and with it all
  other greenlets, the one that would release it included.

So no lock is kept that is not renewed: a constructor makes its locks with :func:`renewed`, or in
``after_fork`` with :func:`renew_at_fork`. A thread is started by its first use in a process, never
by a constructor. tests/test_gevent_patching.py looks for what was forgotten.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

__all__ = [
    "Forkable",
    "Renewable",
    "after_patching",
    "after_unseen_fork",
    "notice_fork",
    "pid",
    "processors",
    "renew_at_fork",
    "renewed",
    "rest_at_fork",
    "settle",
    "tested",
]


class Renewable(Protocol):
    """Something that holds what belongs to one process.

    What the threads of a parent have under way, and the locks that they hold while it forks, are
    nothing to its child, which none of them is in.
    """

    def after_fork(self) -> None:
        """Forget, in the child, what is its parent's; called as well once gevent has patched."""


pid = os.getpid()
"""The id of this process; to be read as ``process.pid``, since a fork changes it.

Known without asking the system for each request."""

_renewables: weakref.WeakSet[Renewable] = weakref.WeakSet()

_parts: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()

_patching_callbacks: list[Callable[[], object]] = []

_listening = False

_unseen: list[Callable[[], object]] = []

unseen = False
"""Whether this process was forked without Python being told."""


def renew_at_fork(renewable: Renewable) -> None:
    """Have *renewable* begin anew in each child of this process, for as long as it lives."""
    _renewables.add(renewable)
    _listen()


def renewed(owner: object, **kinds: str) -> None:
    """Set attributes of *owner* to fresh parts of ``threading``, now and after each fork.

    :param kinds: Attribute name to class name, such as ``_lock="Lock"``.
    """
    _parts.setdefault(owner, {}).update(kinds)
    _make(owner, kinds)
    _listen()


def after_patching(callback: Callable[[], object]) -> None:
    """Have *callback* called each time gevent has patched ``threading``."""
    _patching_callbacks.append(callback)


_tested: bool | None = None


def tested() -> bool:
    """Return whether a test runner runs in this process: pytest, Django's, or unittest's.

    A server that a test started is none: it inherits the runner's environment, but has not loaded
    the runner. Known from the first call on.
    """
    global _tested
    if _tested is None:
        _tested = _has_test_runner()
    return _tested


def _has_test_runner() -> bool:
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
    """Have *callback* called in a child whose fork Python was not told of.

    For what ``os.register_at_fork`` was given.
    """
    _unseen.append(callback)


def notice_fork() -> bool:
    """Begin anew if this process was forked without Python being told.

    :returns: Whether it was, now or before.
    """
    global unseen
    if pid != os.getpid():
        _after_fork()
        unseen = True
        for callback in _unseen:
            callback()
    return unseen


def processors() -> int:
    """Return how many processors this process may use, which is fewer in many containers."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def settle() -> None:
    """Have the garbage collector look no more at what a worker has loaded before it serves.

    That is there to stay; to look through it now and then would hold up every request meanwhile,
    and longer than any of them takes.
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
    """Hear of gevent's patching, once gevent is loaded: it is not loaded for that."""
    global _listening
    if not _listening and "gevent" in sys.modules:
        try:
            subscribers: list[Callable[[object], object]] = import_module(
                "gevent.events"
            ).subscribers
        except (ImportError, AttributeError):
            return  # it is just being loaded
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
    uwsgi: Any = sys.modules.get("uwsgi")  # there in a process of uWSGI, and nowhere else
    if uwsgi is None:
        return
    before = getattr(uwsgi, "post_fork_hook", None)

    def hook() -> None:
        notice_fork()
        if before is not None:
            before()

    uwsgi.post_fork_hook = hook
    try:  # it replaces the hook when it is loaded, so it is loaded first
        import_module("uwsgidecorators").postfork_chain.append(notice_fork)
    except Exception:  # noqa: S110 it is not there, or refuses to be loaded without a master
        pass


os.register_at_fork(after_in_child=_after_fork)

_hook_uwsgi()


# Forks only while no store is in the middle of anything.
#
# A lock that another thread holds at the moment of a fork stays locked in the child for ever, and
# an LMDB environment must not cross a fork at all. So each store is brought to rest before a
# fork.


class Forkable(Protocol):
    """Something with a lock that has to be at rest when its process forks."""

    lock: threading.RLock

    def before_fork(self) -> None:
        """Let go, with the lock held, of what must not cross a fork."""

    def after_unseen_fork(self) -> None:
        """Put right, in the child, what crossed a fork that ``before_fork`` was not told of."""


_guard = threading.Lock()

_forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()

_resting: list[Forkable] | None = None


def rest_at_fork(forkable: Forkable) -> None:
    """Have *forkable* brought to rest before each fork of this process, for as long as it lives."""
    with _guard:
        _forkables.add(forkable)


def _before() -> None:
    global _resting
    _guard.acquire()
    _resting = list(_forkables)
    for forkable in _resting:
        forkable.lock.acquire()
        forkable.before_fork()


def _after() -> None:
    global _resting
    resting, _resting = _resting or [], None
    for forkable in resting:
        forkable.lock.release()
    _guard.release()


def _after_in_child() -> None:
    global _guard
    if _resting is not None:
        _after()
        return
    # a server written in C (uWSGI) forked by itself and told Python only afterwards
    _guard = threading.Lock()
    for forkable in list(_forkables):
        forkable.lock = threading.RLock()
        forkable.after_unseen_fork()


def _after_patching() -> None:
    """Have locks that gevent's greenlets can wait for; nothing is under way while it patches."""
    global _guard
    _guard = threading.Lock()
    for forkable in list(_forkables):
        forkable.lock = threading.RLock()


after_patching(_after_patching)

after_unseen_fork(_after_in_child)

os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
