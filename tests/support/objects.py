"""What an object keeps: its memory and its locks, without the names of its attributes."""

from __future__ import annotations

import gc
import logging
import threading
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import TypeVar

from wsgigate.telemetry.metrics import Recorder

__all__ = ["bytes_kept", "count_kept", "hold_locks", "kept", "part", "texts_kept"]

T = TypeVar("T")

_LOCKS = (type(threading.Lock()), type(threading.RLock()))

_SHARED = (CodeType, FrameType, ModuleType, Recorder, logging.Logger, threading.Thread, type)
"""What an object refers to and does not keep for itself."""


def kept(*roots: object, but: Iterable[object] = ()) -> Iterator[object]:
    """Yield each object that can be reached from *roots*, the nearest first.

    Modules, classes, globals of functions, loggers, threads and the metrics of the process are not
    followed.

    :param but: What else is not followed.
    """
    seen = {id(each) for each in but}
    queue = deque(roots)
    while queue:
        each = queue.popleft()
        if id(each) in seen or isinstance(each, _SHARED):
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, FunctionType):
            parts = (each.__closure__, each.__defaults__, each.__kwdefaults__, each.__dict__)
            queue.extend(part for part in parts if part is not None)
        elif isinstance(each, BuiltinFunctionType):
            queue.append(each.__self__)
        else:
            queue.extend(gc.get_referents(each))
        if isinstance(each, dict):
            queue.extend(each)  # the collector does not visit keys that are strings


def part(kind: type[T], *roots: object) -> T:
    """Return the nearest object of *kind* that can be reached from *roots*."""
    found = next((each for each in kept(*roots) if isinstance(each, kind)), None)
    assert found is not None, f"it keeps no {kind.__name__}"
    return found


def texts_kept(*roots: object, but: Iterable[object] = ()) -> set[str]:
    """Return the strings that can be reached from *roots*."""
    return {each for each in kept(*roots, but=but) if isinstance(each, str)}


def count_kept(kind: type | tuple[type, ...], *roots: object) -> int:
    """Return how many objects of *kind* can be reached from *roots*."""
    return sum(isinstance(each, kind) for each in kept(*roots))


@contextmanager
def hold_locks(*roots: object, but: Iterable[object] = ()) -> Iterator[None]:
    """Hold all locks of *roots*, as threads may at the moment of a fork.

    The child does not have these threads, so that nothing there releases the locks.
    """
    locks = [each for each in kept(*roots, but=but) if isinstance(each, _LOCKS)]
    assert locks, "it has no lock"
    with ExitStack() as held:
        for lock in locks:
            if lock.acquire(blocking=False):  # otherwise another thread holds it
                held.callback(lock.release)
        yield


def bytes_kept(work: Callable[[], object]) -> int:
    """Return how many bytes of memory are still in use after *work*, without its result."""
    tracemalloc.start()
    try:
        work()
        gc.collect()  # also empties the interpreter's lists of free objects
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
