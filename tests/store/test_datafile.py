"""The file beneath LMDB has its disk space before it is written."""

import os

import pytest

from wsgigate.store.datafile import STEP, allocate, keeps_its_space, rounded, unused
from wsgigate.store.lmdb import LmdbStore

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
def test_only_where_a_page_is_surely_written_in_its_place_is_the_file_written_by_memory(
    device, sure
):
    assert keeps_its_space(os.makedev(*device), MOUNTS) is sure


@pytest.mark.parametrize(
    ("size", "length"), [(0, STEP), (1, STEP), (STEP, STEP), (STEP + 1, 2 * STEP)]
)
def test_a_file_is_whole_steps_long(size, length):
    assert rounded(size) == length


def test_the_space_of_a_file_is_taken_from_the_disk_and_not_only_promised(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    os.truncate(path, STEP // 2)  # a hole
    allocate(str(path), STEP)
    assert path.stat().st_blocks * 512 >= STEP
    assert path.read_bytes() == b"before".ljust(STEP, b"\0")


LIMITED = """
import resource, sys
from wsgigate.store.datafile import allocate
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
try:
    allocate(sys.argv[1], 2_000_000)
except OSError as error:
    print(error.strerror)
"""


def test_a_file_that_cannot_have_its_space_is_as_long_as_before(tmp_path, output):
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
