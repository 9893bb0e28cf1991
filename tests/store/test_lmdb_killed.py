"""A process that is killed loses nothing it had written, and blocks nobody."""

import mmap
import os
import random
import signal
import struct
import time
from contextlib import suppress

import lmdb
import pytest

from wsgigate.store import StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.verify import verify


def count(old, now):
    number = int(old or 0) + 1
    return b"%d" % number, 600.0, number


def value(store, key):
    return int(store.get(key)[0] or 0)


class Child:
    """A fork of this process that does one thing until it is killed, and tells of it.

    What it tells is in memory that both have, so that it never waits for this process to listen.
    """

    def __init__(self, work, *arguments):
        self.told = mmap.mmap(-1, 8)
        self.pid = os.fork()
        if self.pid == 0:
            signal.alarm(120)
            try:
                work(self.tell, *arguments)
            finally:
                os._exit(1)

    def tell(self, number):
        self.told[:] = struct.pack("=q", number)

    @property
    def number(self):
        return struct.unpack("=q", self.told[:])[0]

    def wait(self, number):
        """Wait until it has told *number* or a higher one."""
        patience = time.monotonic() + 60
        while self.number < number:
            assert time.monotonic() < patience
            os.sched_yield()

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def child():
    """Start a child; it is killed in the end."""
    started = []

    def start(work, *arguments):
        started.append(Child(work, *arguments))
        return started[-1]

    yield start
    for each in started:
        with suppress(ProcessLookupError, ChildProcessError):
            each.kill()


def count_up(tell, folder, name):
    store = LmdbStore(folder)

    def change(old, now):
        number = int(old or 0) + 1
        # of different lengths, so that pages are split, merged and freed, and the sweep has work
        return str(number).encode().ljust(number % 900), 600.0, number

    while True:
        number = store.update(name, change)
        tell(number)
        store.update(f"passing/{name}/{number}", lambda old, now: (bytes(2000), 0.001, None))


def test_whoever_is_killed_at_whatever_moment_has_written_what_it_told_it_had(child, folder):
    """Three writers each count up a key of their own, one of them is killed, and so on."""
    chance = random.Random(1)
    store = LmdbStore(folder)
    writers = {name: child(count_up, folder, name) for name in "abc"}
    for turn in range(1, 41):
        name = chance.choice("abc")
        writers[name].wait(writers[name].number + chance.randrange(1, 60))
        writers[name].kill()
        told, kept = writers[name].number, value(store, name)
        # it may have been killed after it wrote and before it told
        assert kept in (told, told + 1)
        for other in set("abc") - {name}:
            writers[other].wait(writers[other].number + 20)  # nobody waits for the dead
        assert store.update("own", count) == turn
        writers[name] = child(count_up, folder, name)
        writers[name].wait(kept + 1)
        for each, writer in writers.items():
            told = writer.number
            assert value(store, each) >= told
    store.close()
    for writer in writers.values():
        writer.kill()
    with (folder / "data.mdb").open("rb") as file:
        verify(file)


READING, REFUSED = 1, 2


def look(tell, folder):
    store = LmdbStore(folder)
    while True:
        try:
            store.get("key")
            list(store.items("k"))
            tell(READING)
        except StoreError:
            tell(REFUSED)


def test_slots_of_killed_readers_are_had_again(child, folder, monkeypatch):
    monkeypatch.setattr("wsgigate.store.environment.READERS", 4)
    monkeypatch.setattr("wsgigate.store.environment.LOCK_BYTES", 4 * 64 + 128)
    store = LmdbStore(folder)
    store.update("key", count)
    for _ in range(5):
        readers = [child(look, folder) for _ in range(6)]
        for reader in readers:
            reader.wait(READING)
        assert {reader.number for reader in readers} == {READING, REFUSED}
        for reader in readers:
            reader.kill()
        assert value(store, "key") == 1
        last = child(look, folder)
        last.wait(READING)
        assert last.number == READING
        last.kill()
    store.close()


PIN = """
import lmdb, signal, sys
env = lmdb.open(sys.argv[1], max_readers=1022, map_size=1024 * 1024)
txn = env.begin()
txn.get(b"key")
print("reading", flush=True)
signal.pause()
"""


def test_a_reader_killed_while_it_reads_does_not_make_the_file_grow(program, folder):
    store = LmdbStore(folder)
    store.update("key", count)
    reader = program(PIN, folder)
    assert reader.stdout.readline() == "reading\n"
    reader.kill()
    reader.wait()
    for _ in range(3000):  # three times what the file holds, if no page were used again
        store.update("key", lambda old, now: (os.urandom(1000), 600.0, None))
    assert (folder / "data.mdb").stat().st_size == 1024 * 1024


def test_a_stopped_reader_keeps_the_file_growing_and_everybody_writing(program, folder):
    """What it sees is kept for it, and no more than the file may hold."""
    store = LmdbStore(folder)
    store.update("key", count)
    reader = program(PIN, folder)
    assert reader.stdout.readline() == "reading\n"
    reader.send_signal(signal.SIGSTOP)
    for _ in range(2000):
        store.update("key", lambda old, now: (os.urandom(1000), 600.0, None))
    assert (folder / "data.mdb").stat().st_size > 2 * 1024 * 1024
    reader.kill()
    reader.wait()
    size = (folder / "data.mdb").stat().st_size
    for _ in range(4000):
        store.update("key", lambda old, now: (os.urandom(1000), 600.0, None))
    assert (folder / "data.mdb").stat().st_size <= 2 * size


def test_two_processes_grow_the_file_at_once_and_agree_on_it(program, folder):
    text = """
import os, sys
from wsgigate.store.lmdb import LmdbStore
store = LmdbStore(sys.argv[1])
for number in range(700):
    store.swap(f"{sys.argv[2]}/{number}", None, os.urandom(4000), 600)
print("done", flush=True)
"""
    writers = [program(text, folder, name) for name in "abcd"]
    for writer in writers:
        assert writer.communicate(timeout=60)[0] == "done\n"
    store = LmdbStore(folder)
    assert store.usage()["items"] == 2800
    assert len(list(store.items(""))) == 2800
    store.close()
    with lmdb.open(str(folder), readonly=True) as env:
        assert env.info()["map_size"] <= (folder / "data.mdb").stat().st_size
