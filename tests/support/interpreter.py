"""A fresh Python interpreter, for what must not happen beside other threads."""

from __future__ import annotations

import subprocess
import sys

__all__ = ["run_alone"]


def run_alone(code: str, *arguments: str) -> None:
    """Run *code* in an interpreter of its own and assert that it exits with 0.

    A fork that Python does not know of copies the interpreter's lock as it is: beside other
    threads, which ask for it, the child would wait for one that does not exist in it.
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
