"""The LMDB store when its folder, its disk or a process fails."""

import os
import shutil
import signal
import struct
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import pytest

from tests.support.objects import part
from wsgigate.store import DamagedStore, StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.lmdb_environment import Environment
from wsgigate.store.lmdb_files import check_file


def count(old, now):
    number = int(old or 0) + 1
    return b"%d" % number, 60.0, number


HOLD = """
import signal, sys
from wsgigate.store.lmdb import LmdbStore
def change(old, now):
    print("inside", flush=True)
    signal.pause()
LmdbStore(sys.argv[1]).update("key", change)
"""


def test_a_writer_killed_inside_its_transaction_blocks_no_other_and_writes_nothing(
    program, folder, store
):
    store.update("key", count)
    for expected in (2, 3, 4):
        writer = program(HOLD, folder)
        assert writer.stdout.readline() == "inside\n"
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(30) == -signal.SIGKILL
        assert store.update("key", count) == expected


INTERRUPTED = """
import random, signal, sys
from wsgigate.store.lmdb import LmdbStore

class Interrupted(Exception):
    pass

def interrupt(*_):
    raise Interrupted

def count(old, now):
    return b"%d" % (int(old or 0) + 1), 60.0, None

store = LmdbStore(sys.argv[1])
signal.signal(signal.SIGALRM, interrupt)
for _ in range(200):
    store.update("key", count)
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1e-3))
        while True:
            store.update("key", count)
    except Interrupted:
        pass
    print("interrupted", flush=True)
    sys.stdin.read(1)
"""


def test_a_writer_interrupted_by_a_signal_blocks_no_other(program, folder, store):
    writer = program(INTERRUPTED, folder)
    with ThreadPoolExecutor(1) as pool:
        try:
            for _ in range(200):
                assert writer.stdout.readline() == "interrupted\n"
                pool.submit(store.update, "key", count).result(timeout=20)
                writer.stdin.write(".")
                writer.stdin.flush()
        finally:
            writer.kill()  # who waits for what it holds waits no more


FOREIGN_UID = 65534


def foreign(path):
    """Make *path* another user's, whoever runs the tests: only root can give a file away."""
    if os.geteuid() == 0:
        os.chown(path, FOREIGN_UID, FOREIGN_UID)
        return path
    return Path("/proc")  # never ours, and nothing can be made in it


def damaged(folder, text):
    folder.mkdir(mode=0o700)
    (folder / "data.mdb").write_bytes(text)


def other_program(folder):
    with lmdb.open(str(folder)) as env, env.begin(write=True) as txn:
        txn.put(b"theirs", b"value")


def other_version(folder):
    LmdbStore(folder).check()
    with lmdb.open(str(folder)) as env, env.begin(write=True) as txn:
        txn.put(b"\0wsgigate", b"99")


def linked(folder):
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "elsewhere")


def linked_file(folder):
    folder.mkdir(mode=0o700)
    (folder / "data.mdb").symlink_to(folder.parent / "elsewhere")


def in_the_way(folder):
    folder.mkdir(mode=0o700)
    (folder / "data.mdb").mkdir()


def open_to_others(folder):
    folder.mkdir()
    folder.chmod(0o777)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: folder.write_text(""), "is not a folder"),
        (other_program, "is the LMDB file of another program; name another folder"),
        (other_version, "has the format b'99' of another version of wsgigate, this one has b'1'"),
        (linked, "is a symbolic link, which is not followed"),
        (linked_file, "data.mdb is not a regular file"),
        (in_the_way, "data.mdb is not a regular file"),
        (open_to_others, "is open to other users; chmod go-w"),
    ],
)
def test_an_unusable_folder_is_rejected(folder, spoil, words):
    spoil(folder)
    store = LmdbStore(folder)
    for call in (store.check, lambda: store.get("key"), lambda: store.update("key", count)):
        with pytest.raises(StoreError, match=words) as caught:
            call()
        assert str(folder) in str(caught.value)
    assert not (folder.parent / "elsewhere").is_file()


def test_a_folder_of_another_user_is_rejected(folder):
    folder.mkdir(mode=0o700)
    with pytest.raises(StoreError, match=r"belongs to user \d+, this is user \d+"):
        LmdbStore(foreign(folder)).check()


def test_a_file_of_another_user_is_rejected(tmp_path):
    if os.geteuid() == 0:
        theirs = tmp_path / "data.mdb"
        theirs.write_bytes(b"")
        os.chown(theirs, FOREIGN_UID, FOREIGN_UID)
    else:
        theirs = Path("/proc/version")
    with pytest.raises(StoreError, match=rf"{theirs} belongs to user \d+, this is user \d+"):
        check_file(str(theirs))


def test_a_truncated_file_is_an_error_and_no_crash(folder, output):
    store = LmdbStore(folder)
    for number in range(500):
        store.swap(f"key/{number}", None, bytes(500), 600)
    store.close()
    os.truncate(folder / "data.mdb", 3 * 4096)
    text = """
import sys
from wsgigate.store import StoreError
from wsgigate.store.lmdb_files import check_file
from wsgigate.store.lmdb import LmdbStore
store = LmdbStore(sys.argv[1])
try:
    for number in range(500):
        store.get(f"key/{number}")
        store.swap(f"new/{number}", None, b"", 60)
    print("usable")
except StoreError as error:
    print(error)
"""
    assert output(text, folder).splitlines()[-1] == "usable"
    assert len(aside(folder)) == 1


def aside(folder):
    return sorted(path.name for path in folder.iterdir() if ".damaged-" in path.name)


@pytest.mark.parametrize(
    "text", [b"some text " * 5000, b"short", bytes(1024 * 1024)], ids=["text", "short", "zeros"]
)
def test_a_file_of_another_format_is_moved_aside_and_logged(folder, text, caplog):
    damaged(folder, text)
    with pytest.raises(DamagedStore, match="a gateway that opens it moves it aside"):
        LmdbStore(folder).check()
    assert (folder / "data.mdb").read_bytes() == text
    assert caplog.records == []
    store = LmdbStore(folder)
    assert store.get("key")[0] is None
    assert store.update("key", count) == 1
    [name] = aside(folder)
    assert (folder / name).read_bytes() == text
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert f"{folder}/data.mdb was damaged (" in record.getMessage()
    assert f"moved aside to {folder}/{name}, an empty file takes its place" in record.getMessage()
    assert "denied tokens and maintenance notices are lost" in record.getMessage()
    store.close()
    store.check()  # the new one is none


def test_the_last_three_damaged_files_are_kept(folder):
    for number in range(6):
        if number:
            (folder / "data.mdb").write_bytes(b"%d" % number)
        else:
            damaged(folder, b"0")
        os.utime(folder / "data.mdb", (number, number))
        store = LmdbStore(folder)
        assert store.update("key", count) == 1
        store.close()
    assert sorted((folder / name).read_bytes() for name in aside(folder)) == [b"3", b"4", b"5"]


START = """
import sys
from wsgigate.store.lmdb import LmdbStore
store = LmdbStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(50):
    store.update("key", lambda old, now: (b"%d" % (int(old or 0) + 1), 60.0, None))
print("done", flush=True)
"""


def test_one_of_several_processes_moves_a_damaged_file_and_all_share_the_new_one(
    program, folder, caplog
):
    damaged(folder, bytes(1024 * 1024))
    started = [program(START, folder) for _ in range(6)]
    for each in started:
        assert each.stdout.readline() == "ready\n"
    for each in started:
        each.stdin.write("\n")
        each.stdin.flush()
    for each in started:
        said = each.communicate(timeout=60)[0]
        assert said.splitlines()[-1] == "done", said
    assert len(aside(folder)) == 1
    store = LmdbStore(folder)
    assert store.update("key", count) == 301
    store.close()


HOLDING = """
import sys
from wsgigate.store.lmdb import LmdbStore
store = LmdbStore(sys.argv[1])
store.update("old", lambda old, now: (b"1", 60.0, None))
print("open", flush=True)
for line in sys.stdin:
    value = store.get("new")[0]
    store.update("tick", lambda old, now: (b"", 60.0, None))
    print(value, flush=True)
"""


def test_processes_that_have_a_moved_file_open_switch_to_the_new_one(program, folder, caplog):
    holder = program(HOLDING, folder)
    assert holder.stdout.readline() == "open\n"
    path = folder / "data.mdb"
    with path.open("r+b") as file:  # both heads; what the holder has mapped is this very file
        file.write(bytes(200))
        file.seek(4096)
        file.write(bytes(200))
    store = LmdbStore(folder)
    assert store.swap("new", None, b"here", 600)
    assert len(aside(folder)) == 1

    def told():
        holder.stdin.write("\n")
        holder.stdin.flush()
        return holder.stdout.readline()

    until = time.monotonic() + 30
    while "here" not in (said := told()):
        assert time.monotonic() < until, said
    assert len(aside(folder)) == 1
    store.close()


def test_a_file_found_damaged_in_use_is_moved_aside(folder, caplog):
    store = LmdbStore(folder)
    for number in range(2000):
        store.swap(f"key/{number}", None, bytes(100), 600)
    environment = part(Environment, store)
    environment.recover(lmdb.CorruptedError("page 7"), 0.0)
    assert store.update("key/1", count) == 1
    assert len(aside(folder)) == 1
    # another process had met it as well: what is there now is not touched
    shutil.copy(folder / "data.mdb", folder / "copy")
    os.replace(folder / "copy", folder / "data.mdb")
    environment.recover(lmdb.PageNotFoundError("page 8"), 0.0)
    assert store.update("key/1", count) == 2
    assert len(aside(folder)) == 1
    store.close()


def test_a_malformed_value_is_removed_and_the_others_stay(folder, caplog):
    store = LmdbStore(folder)
    store.swap("good", None, b"kept", 600)
    store.close()
    with lmdb.open(str(folder)) as env, env.begin(write=True) as txn:
        txn.put(b"=short", b"abc")
    store = LmdbStore(folder)
    assert store.get("short")[0] is None
    assert store.update("short", count) == 1
    assert store.get("good")[0] == b"kept"
    assert "malformed values were removed" in caplog.text
    assert aside(folder) == []
    store.close()


def test_an_exception_of_a_change_moves_no_file(folder):
    store = LmdbStore(folder)
    store.swap("good", None, b"kept", 600)

    def broken(old, now):
        raise struct.error("unpack requires a buffer of 8 bytes")

    with pytest.raises(StoreError):
        store.update("key", broken)
    assert store.get("good")[0] == b"kept"
    assert aside(folder) == []
    store.close()


NOBODY = f"""
import os, sys
from wsgigate.store import StoreError
from wsgigate.store.lmdb_files import check_file
from wsgigate.store.lmdb import LmdbStore
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({FOREIGN_UID})
    os.setuid({FOREIGN_UID})
try:
    LmdbStore(sys.argv[1]).check()
except StoreError as error:
    print(error)
"""


@pytest.fixture
def nobodys(tmp_path):
    """A folder of the user that the programs above run as, below folders it may pass through."""
    folder = tmp_path / "nobodys"
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, FOREIGN_UID, FOREIGN_UID)
        for parent in folder.parents:
            if parent.stat().st_uid == 0 and parent.is_relative_to(tempfile.gettempdir()):
                parent.chmod(parent.stat().st_mode | 0o011)
    yield folder
    folder.chmod(0o700)


def test_a_folder_that_cannot_be_written_is_rejected(nobodys, output):
    nobodys.chmod(0o500)
    said = output(NOBODY, nobodys)
    assert said == f"{nobodys}/data.mdb cannot be used: Permission denied\n"
    assert output(NOBODY, nobodys / "new") == (
        f"the folder {nobodys}/new cannot be made: Permission denied\n"
    )


def test_a_check_leaves_nothing_behind_and_nothing_open(folder):
    store = LmdbStore(folder)
    store.check()
    with lmdb.open(str(folder)) as env, env.begin() as txn:
        assert [key for key, _ in txn.cursor()] == [b"\0wsgigate"]


def test_a_check_of_a_store_in_use_leaves_it_open(folder, store):
    store.update("key", count)
    store.check()
    with pytest.raises(lmdb.Error):
        lmdb.open(str(folder))
    assert store.update("key", count) == 2
