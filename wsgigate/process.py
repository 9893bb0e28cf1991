"""Which process this is, known without asking the system for each request."""

from __future__ import annotations

import os

__all__ = ["pid"]

pid = os.getpid()
"""The id of this process; to be read as ``process.pid``, since a fork changes it."""


def _after_fork() -> None:
    global pid
    pid = os.getpid()


os.register_at_fork(after_in_child=_after_fork)
