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


PIN = """
import lmdb, signal, sys
env = lmdb.open(sys.argv[1], max_readers=1022, map_size=1024 * 1024)
txn = env.begin()
txn.get(b"key")
print("reading", flush=True)
signal.pause()
"""


@pytest.fixture
def pinned(program, folder):
    """Return a starter of processes that read, and so keep the pages of the file, until killed."""

    def start():
        reader = program(PIN, folder)
        assert reader.stdout.readline() == "reading\n"
        return reader

    return start


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
