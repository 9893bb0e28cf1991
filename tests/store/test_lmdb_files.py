"""The file beneath LMDB has its disk space before it is written."""

import errno
import os

import lmdb
import pytest

from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.lmdb_environment import LOCK_BYTES
from wsgigate.store.lmdb_files import STEP, allocate, keeps_its_space, rounded, unused

MOUNTS = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
25 24 0:23 / /run/user/0 rw shared:2 - tmpfs tmpfs rw
40 27 0:40 / /xfs rw - xfs /dev/vdb rw
41 27 0:41 /sub /btrfs rw master:1 - btrfs /dev/vdc rw
42 27 0:42 / /merged rw - overlay overlay rw
43 27 0:43 / /odd rw - ext4 /dev/vdd rw
44 27 0:43 / /odd2 rw - fuse.ext4 /dev/vdd rw
"""


@pytest.mark.parametrize(
    ("device", "sure"),
    [
        ((254, 0), True),
        ((0, 23), True),
        ((0, 40), True),
        ((0, 41), False),
        ((0, 42), False),
        ((0, 43), False),
        ((0, 99), False),
    ],
)
def test_keeps_its_space_is_true_for_filesystems_that_write_in_place(device, sure):
    assert keeps_its_space(os.makedev(*device), MOUNTS) is sure


@pytest.mark.parametrize(
    ("size", "length"), [(0, STEP), (1, STEP), (STEP, STEP), (STEP + 1, 2 * STEP)]
)
def test_a_size_is_rounded_up_to_whole_steps(size, length):
    assert rounded(size) == length


def test_the_space_of_a_file_is_allocated_on_the_disk(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    os.truncate(path, STEP // 2)  # a hole
    allocate(str(path), STEP)
    assert path.stat().st_blocks * 512 >= STEP
    assert path.read_bytes() == b"before".ljust(STEP, b"\0")


def test_a_failed_allocation_frees_its_space(tmp_path, monkeypatch):
    """ext4 leaves a file as long as the space it could have, when there is not all of it."""

    def partly(descriptor, start, size):
        os.ftruncate(descriptor, start + size // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "posix_fallocate", partly)
    with pytest.raises(OSError, match="No space left"):
        allocate(str(path), STEP)
    assert path.read_bytes() == b"before"


def test_allocation_of_a_file_in_use_touches_only_its_end_on_unsafe_filesystems(
    tmp_path, monkeypatch
):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    os.truncate(path, STEP)  # a hole, into which somebody writes just now
    held = path.stat().st_blocks
    allocate(str(path), 2 * STEP, used=True)
    assert path.stat().st_blocks * 512 >= 2 * STEP
    path.write_bytes(b"before")
    os.truncate(path, STEP)
    monkeypatch.setattr("wsgigate.store.lmdb_files.keeps_its_space", lambda device: False)
    allocate(str(path), STEP, used=True)
    assert path.stat().st_blocks == held
    allocate(str(path), 2 * STEP, used=True)
    assert path.stat().st_size == 2 * STEP
    assert STEP <= path.stat().st_blocks * 512 < 2 * STEP


def test_a_lock_file_with_fewer_readers_is_enlarged_and_allocated(folder):
    folder.mkdir(0o700)
    lmdb.open(str(folder), max_readers=10).close()
    lock = folder / "lock.mdb"
    assert lock.stat().st_size < LOCK_BYTES
    store = LmdbStore(folder)
    store.check()
    assert lock.stat().st_size == LOCK_BYTES
    assert lock.stat().st_blocks * 512 >= LOCK_BYTES
    store.close()


EARLIER = """
import lmdb, os, sys
from wsgigate.store.lmdb_environment import expiry
env = lmdb.open(sys.argv[1], map_size=8 * 1024 * 1024, max_readers=1022, sync=False)
for number in range(1001):
    with env.begin(write=True) as txn:
        txn.put(b"=%d" % number, expiry.pack(1e12) + os.urandom(2000))
os.truncate(sys.argv[1] + "/data.mdb", os.path.getsize(sys.argv[1] + "/data.mdb") + 4096 * 3)
"""


def test_a_file_enlarged_by_an_earlier_version_is_allocated(folder, output):
    """Earlier versions wrote by system calls, into a file of any length and with holes."""
    store = LmdbStore(folder)
    assert store.get("1000")[0] is None
    output(EARLIER, folder)
    found = (folder / "data.mdb").stat()
    assert found.st_size > STEP
    assert found.st_size % STEP
    assert len(store.get("1000")[0]) == 2000
    found = (folder / "data.mdb").stat()
    assert found.st_size % STEP == 0
    assert found.st_blocks * 512 >= found.st_size
    assert len(list(store.items(""))) == 1001
    store.close()


LIMITED = """
import resource, sys
from wsgigate.store.lmdb_files import allocate
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
try:
    allocate(sys.argv[1], 2_000_000)
except OSError as error:
    print(error.strerror)
"""


def test_a_failed_allocation_keeps_the_size_of_the_file(tmp_path, output):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    assert output(LIMITED, path) == "File too large\n"
    assert path.read_bytes() == b"before"


USE = """
import sys
from wsgigate.store.lmdb import LmdbStore
LmdbStore(sys.argv[1]).get("key")
print("open", flush=True)
sys.stdin.readline()
"""


def test_a_file_counts_as_unused_only_when_no_process_has_it_open(folder, program):
    LmdbStore(folder).check()
    lock = str(folder / "lock.mdb")
    assert unused(lock)
    user = program(
        "store = None"
        + USE.replace("LmdbStore(sys", "store = LmdbStore(sys").replace(
            '.get("key")', '; store.get("key")'
        ),
        folder,
    )
    assert user.stdout.readline() == "open\n"
    assert not unused(lock)
    user.communicate("\n")
    assert unused(lock)
