"""Private folders of deleted apps are removed; folders in use and of others are kept."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from wsgigate.store import StoreError, lmdb_files
from wsgigate.store.lmdb import LmdbStore, folders_in_use
from wsgigate.store.lmdb_environment import Environment
from wsgigate.store.lmdb_files import own_folder
from wsgigate.store.lmdb_folders import AGE, MAX_REMOVED, private_folder, remove_leftovers
from wsgigate.testing import FakeClock


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "wsgigate"


def left(owner, *, ttl=10.0, age=AGE + 60):
    """Leave a folder behind, last used some time ago; return its path."""
    folder = private_folder(owner)
    clock = FakeClock(time.time() - age)
    store = LmdbStore(folder, clock=clock)
    store.swap("key", None, b"value", ttl)
    store.close()
    for path in (*(os.path.join(folder, name) for name in os.listdir(folder)), folder):
        os.utime(path, (clock(), clock()))
    return folder


def names(base):
    return sorted(path.name.rpartition("-")[0] for path in base.iterdir())


def test_making_a_folder_removes_those_of_deleted_apps(base):
    for name in ("gone", "gone-too", "young", "alive"):
        private_folder(name)
    left("gone")
    left("gone-too")
    left("young", age=60)
    left("alive", ttl=AGE + 120)
    assert names(base) == ["alive", "gone", "gone-too", "young"]
    private_folder("young")
    assert len(names(base)) == 4, "only what makes a new folder looks at the others"
    private_folder("new")
    assert names(base) == ["alive", "new", "young"]


@pytest.mark.parametrize("how", ["process", "this"])
def test_a_folder_that_a_process_has_open_is_kept(base, how):
    folder = left("used")
    code = "import sys; from wsgigate.store.lmdb import LmdbStore\n"
    code += f"store = LmdbStore({folder!r}); store.get('key'); print(flush=True); sys.stdin.read()"
    if how == "this":
        store = LmdbStore(folder)
        store.get("key")
        os.utime(folder, (0, 0))
        assert remove_leftovers(str(base), keep=folders_in_use(), now=time.time() + 9e9) == 0
        store.close()
        return
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline()
        os.utime(folder, (0, 0))
        assert remove_leftovers(str(base), keep=frozenset(), now=time.time() + 9e9) == 0
        process.stdin.close()
    assert remove_leftovers(str(base), keep=frozenset(), now=time.time() + 9e9) == 1


@pytest.mark.parametrize("what", ["file", "link", "foreign", "damaged", "name"])
def test_other_files_and_folders_are_kept(base, what, tmp_path):
    folder = left("gone")
    if what == "file":
        (base / "file-0123456789ab").write_text("")
        os.utime(base / "file-0123456789ab", (0, 0))
        remove_leftovers(str(base), keep=frozenset())
        assert names(base) == ["file"]
        return
    if what == "link":
        os.rename(folder, tmp_path / "elsewhere")
        os.symlink(tmp_path / "elsewhere", folder)
    elif what == "foreign":
        (base / os.path.basename(folder) / "notes.txt").write_text("mine")
    elif what == "damaged":
        with open(os.path.join(folder, "data.mdb"), "r+b") as file:
            file.write(b"x" * 8192)
    else:
        os.rename(folder, base / "somebody-elses")
    assert remove_leftovers(str(base), keep=frozenset(), now=time.time() + 9e9) == 0
    assert len(list(base.iterdir())) == 1


def test_empty_folders_are_removed_a_limited_number_at_a_time(base):
    folders = [private_folder(f"app{number}") for number in range(MAX_REMOVED + 2)]
    for folder in folders:
        os.utime(folder, (0, 0))
    assert remove_leftovers(str(base), keep=frozenset()) == MAX_REMOVED
    assert remove_leftovers(str(base), keep=frozenset()) == 2
    assert remove_leftovers(str(base / "nowhere"), keep=frozenset()) == 0


def test_a_folder_removed_before_it_was_locked_is_made_again(base):
    folder = left("late")
    removed, waiting = threading.Event(), threading.Event()

    def remove():
        with lmdb_files.alone(folder):
            waiting.set()
            for name in os.listdir(folder):
                os.unlink(os.path.join(folder, name))
            os.rmdir(folder)
        removed.set()

    thread = threading.Thread(target=remove)
    thread.start()
    waiting.wait()
    environment = Environment(folder, 1 << 20)
    environment.open()
    environment.close()
    thread.join()
    assert removed.is_set()
    assert sorted(os.listdir(folder)) == ["data.mdb", "lock.mdb"]


def test_locking_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), lmdb_files.alone(str(tmp_path / "gone")):
        pass

    def pretend(folder):
        pass

    with pytest.raises(FileNotFoundError), lmdb_files.alone(str(tmp_path / "gone"), pretend):
        pass


def test_a_folder_of_another_user_is_rejected(tmp_path):
    (tmp_path / "open").mkdir(mode=0o777)
    os.chmod(tmp_path / "open", 0o777)
    with pytest.raises(StoreError, match="open to other users"):
        Environment(str(tmp_path / "open"), 1 << 20).open()
    own_folder(str(tmp_path / "mine"))
