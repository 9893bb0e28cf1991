"""What tests of stores share: a folder, a clock, and programs in processes of their own."""

import os
import subprocess
import sys

import pytest

from wsgigate.store.lmdb import LmdbStore


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(folder, clock):
    store = LmdbStore(folder, clock=clock)
    yield store
    store.close()


@pytest.fixture
def program():
    """Start a Python program in a process of its own; it is killed and waited for in the end."""
    started = []

    def start(text, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", text, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def output(program):
    """Run a Python program to its end; return what it printed."""

    def run(text, *arguments):
        process = program(text, *arguments)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 0, printed
        return printed

    return run
