"""A killed process loses no completed write and blocks no other process."""

import mmap
import os
import random
import select
import signal
import struct
import traceback
from contextlib import suppress
from pathlib import Path

import lmdb
import pytest

from wsgigate.store import StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.lmdb_environment import expiry
from wsgigate.store.lmdb_files import alone, verify


def count(old, now):
    number = int(old or 0) + 1
    return b"%d" % number, 600.0, number


def value(store, key):
    return int(store.get(key)[0] or 0)


class Child:
    """A fork of this process that repeats some work until it is killed, and reports its progress.

    The progress is a number in shared memory, so that the child never waits for this process; a
    full pipe is ignored, as this process is then awake. The pipe ends when the child does, so that
    no wait needs a limit of its own.
    """

    def __init__(self, work, *arguments):
        self._shared = mmap.mmap(-1, 8)
        self.pipe, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self.pid = os.fork()
        if self.pid == 0:
            signal.alarm(600)  # one that hangs
            try:
                work(self.report, *arguments)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(self._writing)

    def report(self, number):
        self._shared[:] = struct.pack("=q", number)
        with suppress(BlockingIOError):
            os.write(self._writing, b".")

    @property
    def number(self):
        return struct.unpack("=q", self._shared[:])[0]

    def wait(self, number):
        """Wait until it has reported *number* or a higher one."""
        while self.number < number:
            wait_for_reports([self])

    def kill(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.pipe)
            self.pid = 0


def wait_for_reports(children):
    """Wait until one of *children* reports; fail if it has ended."""
    for pipe in select.select([each.pipe for each in children], [], [])[0]:
        assert os.read(pipe, 65536), "the child has ended"


@pytest.fixture
def child():
    """Return a starter of children, which are killed after the test."""
    started = []

    def start(work, *arguments):
        started.append(Child(work, *arguments))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def count_up(report, folder, name):
    store = LmdbStore(folder)

    def change(old, now):
        number = int(old or 0) + 1
        # of different lengths, so that pages are split, merged and freed, and the sweep has work
        return str(number).encode().ljust(number % 900), 600.0, number

    while True:
        number = store.update(name, change)
        report(number)
        store.update(f"passing/{name}/{number}", lambda old, now: (bytes(2000), 0.001, None))


def test_a_writer_killed_at_any_moment_has_written_what_it_reported(child, folder):
    """Three writers each count up a key of their own, one of them is killed, and so on."""
    chance = random.Random(1)
    store = LmdbStore(folder)
    writers = {name: child(count_up, folder, name) for name in "abc"}
    for turn in range(1, 41):
        name = chance.choice("abc")
        writers[name].wait(writers[name].number + chance.randrange(1, 60))
        writers[name].kill()
        reported, kept = writers[name].number, value(store, name)
        # it may have been killed after it wrote and before it reported
        assert kept in (reported, reported + 1)
        for other in set("abc") - {name}:
            writers[other].wait(writers[other].number + 20)  # they do not wait for a dead process
        assert store.update("own", count) == turn
        writers[name] = child(count_up, folder, name)
        writers[name].wait(kept + 1)
        for each, writer in writers.items():
            reported = writer.number
            assert value(store, each) >= reported
    store.close()
    for writer in writers.values():
        writer.kill()
    with (folder / "data.mdb").open("rb") as file:
        verify(file)


READING, REFUSED = 1, 2


def look(report, folder):
    store = LmdbStore(folder)
    while True:
        try:
            store.get("key")
            list(store.items("k"))
            report(READING)
        except StoreError:
            report(REFUSED)


def wait_for_both(readers):
    """Wait until some read and some are refused: while the file grows, they may change places."""
    while {reader.number for reader in readers} != {READING, REFUSED}:
        wait_for_reports(readers)


def test_slots_of_killed_readers_are_reused(child, folder, monkeypatch):
    monkeypatch.setattr("wsgigate.store.lmdb_environment.READERS", 4)
    monkeypatch.setattr("wsgigate.store.lmdb_environment.LOCK_BYTES", 4 * 64 + 128)
    store = LmdbStore(folder)
    store.update("key", count)
    for _ in range(5):
        readers = [child(look, folder) for _ in range(6)]
        wait_for_both(readers)
        for reader in readers:
            reader.kill()
        assert value(store, "key") == 1
        last = child(look, folder)
        last.wait(READING)
        assert last.number == READING
        last.kill()
    store.close()


def test_slots_of_killed_readers_are_reused_while_another_process_has_the_file_open(
    child, folder, monkeypatch
):
    """The table of readers is kept then."""
    monkeypatch.setattr("wsgigate.store.lmdb_environment.READERS", 4)
    monkeypatch.setattr("wsgigate.store.lmdb_environment.LOCK_BYTES", 4 * 64 + 128)
    store = LmdbStore(folder)
    store.update("key", count)
    keeper = child(look, folder)
    keeper.wait(READING)
    for _ in range(3):
        readers = [child(look, folder) for _ in range(2)]
        for reader in readers:
            reader.wait(READING)
        assert [reader.number for reader in readers] == [READING] * 2
        for reader in readers:
            reader.kill()
        assert value(store, "key") == 1
    store.close()


def test_a_writer_frees_the_slots_of_killed_readers_when_none_is_left(child, folder, monkeypatch):
    monkeypatch.setattr("wsgigate.store.lmdb_environment.READERS", 4)
    monkeypatch.setattr("wsgigate.store.lmdb_environment.LOCK_BYTES", 4 * 64 + 128)
    monkeypatch.setattr("wsgigate.store.lmdb_environment.CHECK_EVERY", 0.0)
    LmdbStore(folder).check()
    keeper = child(count_up, folder, "keeper")
    keeper.wait(1)
    for _ in range(3):
        readers = [child(look, folder) for _ in range(6)]
        wait_for_both(readers)
        for reader in readers:
            reader.kill()
        keeper.wait(keeper.number + 3)
        store = LmdbStore(folder)
        assert value(store, "keeper") > 0
        store.close()


def test_a_reader_killed_while_it_reads_does_not_make_the_file_grow(pinned, folder):
    store = LmdbStore(folder)
    store.update("key", count)
    reader = pinned()
    reader.kill()
    reader.wait()
    for _ in range(3000):  # three times what the file holds, unless pages are used again
        store.update("key", lambda old, now: (os.urandom(1000), 600.0, None))
    assert (folder / "data.mdb").stat().st_size == 1024 * 1024


def test_a_stopped_reader_cannot_grow_the_file_beyond_its_bound(pinned, folder, clock):
    """LMDB keeps the pages that it may read, and all that were written later."""
    store = LmdbStore(folder, map_size=1024 * 1024, clock=clock)
    store.update("key", count)
    reader = pinned()
    reader.send_signal(signal.SIGSTOP)

    def change_often():
        for number in range(20_000):
            # the sweep finds something to remove each time, which takes pages as well
            store.update(f"key/{number % 100}", lambda old, now: (os.urandom(1000), 10.0, None))

    for _ in range(12):
        with pytest.raises(StoreError, match="is full"):
            change_often()
        clock.advance(11)
    length = (folder / "data.mdb").stat().st_size
    assert 5 * 1024 * 1024 <= length <= 9 * 1024 * 1024
    reader.kill()
    reader.wait()
    change_often()
    assert (folder / "data.mdb").stat().st_size == length
    store.close()


def test_a_file_without_a_free_page_grows_enough_for_a_sweep(folder):
    store = LmdbStore(folder, map_size=1024 * 1024)
    store.check()
    path = folder / "data.mdb"
    bound = 5 * 1024 * 1024
    os.truncate(path, bound)
    with lmdb.open(str(folder), map_size=bound) as env:
        for size in (3000, 1000, 10):
            with suppress(lmdb.MapFullError):
                for number in range(100_000):
                    with env.begin(write=True) as txn:
                        txn.put(b"=%d/%d" % (size, number), expiry.pack(0.0) + bytes(size))
    assert store.update("new", count) == 1
    assert path.stat().st_size == bound + 1024 * 1024
    for number in range(1000):
        store.update(f"new/{number}", count)
    assert path.stat().st_size == bound + 1024 * 1024
    store.close()


def fill(report, folder, start):
    store = LmdbStore(folder)
    store.check()
    store.get("key")  # the file is open
    report(1)
    os.read(start, 1)
    for number in range(1000):
        store.swap(f"key/{number}", None, bytes(4000), 600)
    report(2)


def test_one_process_at_a_time_enlarges_the_file(child, folder):
    waiting, start = os.pipe()
    writer = child(fill, folder, waiting)
    writer.wait(1)
    with alone(str(folder)):
        os.write(start, b".")
        inode = f":{folder.stat().st_ino} "
        while not any(
            "->" in line and "FLOCK" in line and inode in line
            for line in Path("/proc/locks").read_text().splitlines()
        ):
            assert writer.number == 1, "it did not wait for the lock"
            os.sched_yield()
        assert (folder / "data.mdb").stat().st_size < 4 * 1024 * 1024
    writer.wait(2)
    assert (folder / "data.mdb").stat().st_size > 4 * 1024 * 1024
    for each in (waiting, start):
        os.close(each)


def test_processes_that_grow_the_file_at_once_agree_on_its_size(program, folder):
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
