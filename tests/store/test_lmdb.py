"""The LMDB store: what processes of one machine share, and what a fork does."""

import os
import re
import stat
import sys
import threading

import lmdb
import pytest

from wsgigate.store import StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.open import open_store


def count(old, now):
    number = int(old or 0) + 1
    return b"%d" % number, 60.0, number


def test_nothing_is_opened_or_made_before_the_first_use(folder):
    store = LmdbStore(folder)
    assert not folder.exists()
    store.get("key")
    store.close()
    assert folder.exists()


def test_the_folder_and_its_files_are_for_their_owner_only(folder, store):
    store.get("key")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {
        "data.mdb": "0o600",
        "lock.mdb": "0o600",
    }


def test_two_stores_of_one_process_share_what_is_open_under_all_names_of_a_folder(
    folder, tmp_path, monkeypatch
):
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    stores = [LmdbStore(folder), LmdbStore("store"), LmdbStore(tmp_path / "link" / "store")]
    assert [store.update("key", count) for store in stores] == [1, 2, 3]
    stores[0].close()
    assert stores[1].update("key", count) == 4
    stores[1].close()
    stores[2].close()
    with lmdb.open(str(folder)):  # which LMDB refuses while it is open in this process
        pass


def test_a_garbage_collected_store_closes_its_environment(folder):
    LmdbStore(folder).update("key", count)
    with lmdb.open(str(folder)):
        pass


def test_a_relative_path_is_resolved_when_the_store_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store("lmdb:here")
    monkeypatch.chdir("/")
    store.get("key")
    store.close()
    assert (tmp_path / "here" / "data.mdb").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": ""}, "path of an lmdb store is empty"),
        ({"path": "/x", "map_size": 1000}, "map_size is at least 1048576 bytes .1 MiB., got 1000"),
    ],
)
def test_invalid_arguments_are_rejected(settings, words):
    with pytest.raises(ValueError, match=words):
        LmdbStore(**settings)


def test_a_change_that_keeps_the_value_writes_nothing(folder, store):
    store.update("key", count)
    before = (folder / "data.mdb").read_bytes()
    assert store.update("key", lambda old, now: (old, 1.0, "kept")) == "kept"
    assert store.update("none", lambda old, now: (None, 1.0, "kept")) == "kept"
    assert (folder / "data.mdb").read_bytes() == before


def test_a_nested_write_is_rejected_without_a_deadlock(store):
    with pytest.raises(StoreError, match="would deadlock"):
        store.update("key", lambda old, now: store.update("key", count))
    assert store.update("key", count) == 1


def test_forks_of_a_process_that_uses_the_store_can_use_it_as_well(store):
    going = True

    def write():
        while going:
            store.update("busy", count)

    store.update("key", count)
    thread = threading.Thread(target=write)
    thread.start()
    children = []
    try:
        for _ in range(8):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    for _ in range(50):
                        store.update("key", count)
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
            store.update("key", count)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    finally:
        going = False
        thread.join()
    assert store.get("key")[0] == b"409"


def test_a_child_that_does_not_use_the_store_leaves_it_unchanged(store):
    store.update("key", count)
    child = os.fork()
    if child == 0:
        sys.stderr.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert store.update("key", count) == 2


UNSEEN = """
import ctypes, os, sys
from wsgigate.store import StoreError
from wsgigate.store.lmdb import LmdbStore
store = LmdbStore(sys.argv[1])
store.swap("key", None, b"parent", 60)
child = ctypes.PyDLL(None).fork()
if child == 0:
    ctypes.pythonapi.PyOS_AfterFork_Child()
    try:
        store.get("key")
        said = b"usable"
    except StoreError as error:
        said = str(error).encode()
    os.write(1, said)
    os._exit(0)
os.waitpid(child, 0)
assert store.swap("key", b"parent", b"still", 60)
"""


def test_a_fork_reported_too_late_is_an_error_and_leaves_the_parent_intact(output, folder):
    """Python 3.13.0 ends such a child by itself, before it runs a line of Python."""
    assert re.search("cannot be used|^Fatal Python error", output(UNSEEN, folder))


def test_many_processes_that_open_a_new_folder_at_once_agree_on_it(program, folder):
    text = """
import sys
from wsgigate.store.lmdb import LmdbStore
store = LmdbStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    store.update("key", lambda old, now: (b"%d" % (int(old or 0) + 1), 60.0, None))
print("done", flush=True)
"""
    workers = [program(text, folder) for _ in range(4)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        assert worker.communicate(timeout=30)[0] == "done\n"
    assert LmdbStore(folder).get("key")[0] == b"80"


def test_the_repr_of_a_store_has_its_folder(folder):
    assert repr(LmdbStore(folder)) == f"LmdbStore('{folder}')"
