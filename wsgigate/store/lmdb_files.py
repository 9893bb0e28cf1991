"""The files beneath LMDB: their folder, their disk space, their verification, their removal.

LMDB writes into memory mapped from the file, which costs a quarter of writing to the file. A write
to a page without disk space behind it is not an error but a signal that kills the process (SIGBUS).
So the file is never longer than the space allocated for it, and one process at a time makes it
grow, under the lock of :func:`alone`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from operator import ge, le
from typing import IO, Any, NamedTuple

from wsgigate.runtime import folders
from wsgigate.runtime.folders import FolderError, keeps_its_space
from wsgigate.store import MisconfiguredStore, StoreError

__all__ = [
    "DAMAGED",
    "FIX",
    "STEP",
    "Damaged",
    "OtherVersion",
    "allocate",
    "alone",
    "check_file",
    "enlarged",
    "fill_lock_file",
    "keeps_its_space",
    "move_aside",
    "of_folder",
    "of_system",
    "own_folder",
    "reach",
    "rounded",
    "unused",
    "verify",
]


# Private folders: made, and checked before anything is stored in them.

FIX = 'set store.url = "lmdb:/path" to a folder that this user may write'


def of_folder(error: FolderError) -> StoreError:
    """Return *error* as the error of a store, whether it may pass or lasts."""
    return (MisconfiguredStore if error.lasting else StoreError)(str(error))


def of_system(error: OSError, trouble: str) -> StoreError:
    """Return *error* as the error of a store, whether it may pass or lasts; *trouble* begins it."""
    return of_folder(FolderError.of_system(error, trouble))


def own_folder(path: str, *, private: bool = False) -> None:
    """Make *path* with mode 0700 unless it exists, and check that no other user can write to it.

    :param private: Whether no other user may read it either.
    :raises MisconfiguredStore: It cannot be made, is a symbolic link or not a folder, belongs to
        another user, or is open to others; the message names the cause and the remedy.
    :raises StoreError: It cannot be made now, for example because the disk is full.
    """
    try:
        folders.own_folder(path, private=private)
    except FolderError as error:
        raise of_folder(error) from error


def check_file(path: str) -> None:
    """Check that *path* is missing, or a regular file of this user.

    :raises MisconfiguredStore: It is something else, or belongs to another user.
    """
    try:
        folders.check_file(path)
    except FolderError as error:
        raise of_folder(error) from error


# Verification of an LMDB file from its root to its last page, because LMDB trusts the file: a page
# number that leads nowhere makes it stop the process or read foreign memory, which no exception
# handler catches. The format is that of LMDB 0.9 on 64 bits (mdb.c: MDB_page, MDB_node, MDB_meta,
# MDB_db; data version 1).
#
# A child process that reads every key through LMDB, and whose crash harms nothing, does not replace
# it: LMDB reads neither the list of free pages nor the heads of overflow pages that way. Of 640
# files with a truncation, a flipped bit, a zeroed, renumbered or misplaced page, the child accepted
# 101 that are damaged; a worker that then wrote to these failed with 50 and was killed by 2. The
# walk takes 8 ms for a file of 3 MB, the child 17 ms.

MAGIC, VERSION = 0xBEEFC0DE, 1

HEAD = 16  # bytes of a page before its node offsets: pgno, pad, flags, lower, upper

NODE = 8  # bytes of a node before its key: size or page (low, high), flags, length of the key

BRANCH, LEAF, OVERFLOW, META = 0x01, 0x02, 0x04, 0x08

BIG = 0x01  # flag of a node whose value is on overflow pages

INTEGER_KEYS = 0x08

PAGES = {1 << bits for bits in range(9, 17)}

NONE = 2**64 - 1  # the root of an empty tree

DEEPEST = 32  # maximum depth that LMDB supports

KEY_BYTES = 511  # maximum length of a key in LMDB

_head = struct.Struct("<QHHHH")

_meta = struct.Struct("<II16x")

_tree = struct.Struct("<IHHQQQQQ")

_last = struct.Struct("<QQ")

_node = struct.Struct("<HHHH")

_number = struct.Struct("<Q")


class Damaged(Exception):
    """The file is not an LMDB file, or is damaged; the message says where."""


class OtherVersion(Damaged):
    """The file is an LMDB file of another version."""


class _Tree(NamedTuple):
    pad: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int


class _PageNode(NamedTuple):
    at: int
    """Offset on its page."""
    low: int
    high: int
    """Size of the value; on a branch page, with the flags, the number of the child page."""
    flags: int
    key: int
    """Length of the key."""


class _Meta(NamedTuple):
    size: int
    """Bytes of a page."""
    free: _Tree
    main: _Tree
    last: int
    """Number of the last page in use."""
    transaction: int


def reach(file: IO[bytes]) -> int:
    """Return the offset at which the last page in use ends.

    :raises Damaged: The file is not an LMDB file.
    """
    meta = _newest(file)
    return (meta.last + 1) * meta.size


def verify(file: IO[bytes]) -> None:
    """Check that every page in use exists once and has the expected kind and structure.

    The contents of values are not checked: a flipped bit there yields another valid value.

    :raises Damaged: A page is wrong; the message names it.
    """
    if sys.byteorder != "little" or sys.maxsize < 2**32:
        return  # the layout differs there
    meta = _newest(file)
    length = file.seek(0, 2)
    if length < (meta.last + 1) * meta.size:
        raise Damaged(f"truncated: {length} bytes of {(meta.last + 1) * meta.size}")
    seen = bytearray(meta.last + 1)
    seen[0] = seen[1] = 1
    for value in _walk(file, meta, meta.free, seen):
        pages = array("Q", value[: len(value) & ~7])
        free = pages[1 : 1 + pages[0]] if pages else pages
        if not pages or pages[0] >= len(pages) or any(map(le, free, free[1:])):
            raise Damaged("malformed list of free pages")
        for page in free:
            _mark(seen, page)
    for _ in _walk(file, meta, meta.main, seen):
        pass


def _newest(file: IO[bytes]) -> _Meta:
    file.seek(0)
    raw = file.read(HEAD + 136)
    metas = [_meta_of(raw)]
    size = metas[0].size
    file.seek(size)
    metas.append(_meta_of(file.read(HEAD + 136)))
    if metas[1].size != size:
        raise Damaged("its two meta pages differ in the page size")
    return max(metas, key=lambda meta: meta.transaction)


def _meta_of(raw: bytes) -> _Meta:
    if len(raw) < HEAD + 136:
        raise Damaged("shorter than its meta pages")
    magic, version = _meta.unpack_from(raw, HEAD)
    if not _head.unpack_from(raw)[2] & META or magic != MAGIC:
        raise Damaged("no LMDB header")
    if version != VERSION:
        raise OtherVersion(f"data version {version}, not {VERSION}")
    free = _Tree(*_tree.unpack_from(raw, HEAD + 24))
    main = _Tree(*_tree.unpack_from(raw, HEAD + 72))
    last, transaction = _last.unpack_from(raw, HEAD + 120)
    if free.pad not in PAGES or not 1 <= last < 2**40:
        raise Damaged("malformed meta page")
    if (free.flags & 0x7FFF, main.flags & 0x7FFF) != (INTEGER_KEYS, 0):
        raise Damaged("unknown flags of its trees")
    return _Meta(free.pad, free, main, last, transaction)


def _mark(seen: bytearray, page: int, count: int = 1) -> None:
    if page + count > len(seen) or any(seen[page : page + count]):
        raise Damaged(f"page {page} is referenced twice, or beyond the end")
    seen[page : page + count] = b"\1" * count


def _walk(file: IO[bytes], meta: _Meta, tree: _Tree, seen: bytearray) -> Iterator[bytes]:
    """Yield the values of *tree*: whole for the tree of free pages, else their first 8 bytes."""
    if tree.root == NONE:
        return
    whole = tree is meta.free
    branches = leaves = overflows = entries = 0
    if tree.depth > DEEPEST:
        raise Damaged("its tree is too deep")
    order = _as_number if whole else bytes
    # for each page: its number, its level above the leaves, and the bounds of its keys
    waiting: list[tuple[int, int, Any, Any]] = [(tree.root, tree.depth, None, None)]
    while waiting:
        number, level, least, below = waiting.pop()
        _mark(seen, number)
        file.seek(number * meta.size)
        page = file.read(meta.size)
        nodes = list(_nodes(page, number, LEAF if level == 1 else BRANCH))
        if whole and any(node.key < 8 for node in nodes[level > 1 :]):
            raise Damaged(f"page {number} has a key that is too short")
        keys: list[Any] = [order(page[at + NODE : at + NODE + key]) for at, _, _, _, key in nodes]
        if level > 1:
            keys[0] = least  # LMDB does not read the first key of a branch page
        inner = keys if least is not None or level == 1 else keys[1:]
        if any(map(ge, inner, inner[1:])) or (
            inner and ((least is not None and inner[0] < least) or not _under(inner[-1], below))
        ):
            raise Damaged(f"page {number} has keys out of order")
        if level > 1:
            branches += 1
            children = [low | high << 16 | flags << 32 for _, low, high, flags, _ in nodes]
            bounds = zip(children, keys, [*keys[1:], below], strict=True)
            waiting += [(child, level - 1, *bound) for child, *bound in bounds]
            continue
        if whole and keys and not 0 < keys[-1] <= meta.transaction:
            raise Damaged("its list of free pages names a later transaction")
        leaves += 1
        for at, low, high, flags, length in nodes:
            entries += 1
            size, begin = low | high << 16, at + NODE + length
            if flags & ~BIG:
                raise Damaged(f"page {number} has a node with unknown flags")
            if not flags:
                yield page[begin : begin + size]
                continue
            first = _number.unpack_from(page, begin)[0]
            count = (HEAD + size - 1) // meta.size + 1
            _mark(seen, first, count)
            overflows += count
            file.seek(first * meta.size)
            head = file.read(HEAD + (size if whole else min(size, 8)))
            if _head.unpack_from(head)[0] != first or _head.unpack_from(head)[2] != OVERFLOW:
                raise Damaged(f"page {first} has an unexpected number or type")
            if int.from_bytes(head[12:16], "little") != count:
                raise Damaged(f"page {first} has an unexpected length")
            yield head[HEAD:]
    found, expected = (branches, leaves, overflows, entries), tree[3:7]
    if found != expected:  # LMDB trusts these numbers, and the store rejects values by them
        raise Damaged(f"{found} branch, leaf and overflow pages and entries instead of {expected}")


def _as_number(key: bytes) -> int:
    return int.from_bytes(key, "little")


def _under(key: Any, bound: Any) -> bool:
    return bound is None or key < bound


def _nodes(page: bytes, number: int, kind: int) -> Iterator[_PageNode]:
    """Yield the nodes of *page* in the order of their keys."""
    own, _, flags, lower, upper = _head.unpack_from(page)
    if own != number or flags != kind:
        raise Damaged(f"page {number} has an unexpected number or type")
    if not HEAD < lower <= upper <= len(page) or lower % 2:
        raise Damaged(f"page {number} has malformed bounds")
    places = struct.unpack_from(f"<{(lower - HEAD) // 2}H", page, HEAD)
    begin = upper
    for at in sorted(places):  # LMDB packs them up to the end of the page
        if at != begin or at > len(page) - NODE:
            raise Damaged(f"page {number} has a misplaced node")
        low, high, flags, length = _node.unpack_from(page, at)
        if length > KEY_BYTES:
            raise Damaged(f"page {number} has a key that is too long")
        data = 0 if kind == BRANCH else 8 if flags & BIG else low | high << 16
        begin += NODE + length + data + (length + data) % 2
    if begin != len(page):
        raise Damaged(f"page {number} has a node beyond its end")
    for at in places:
        yield _PageNode(at, *_node.unpack_from(page, at))


STEP = 1024 * 1024
"""The length of the file is a multiple of it."""

DAMAGED = ".damaged-"
"""Suffix of a file that was moved aside; the time follows."""

KEPT = 3
"""Number of such files kept: each may be as large as the store."""

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_NOCOW_FL = 0x80086601, 0x40086602, 0x00800000
"""ioctl_iflags(2), with the values for 64 bits."""


def rounded(size: int) -> int:
    """Return *size* rounded up to a multiple of :data:`STEP`."""
    return max(STEP, -(-size // STEP) * STEP)


ATTEMPTS = 10
"""Maximum attempts to make a folder that other processes remove at the same time."""


@contextmanager
def alone(folder: str, make: Callable[[str], object] | None = None) -> Iterator[None]:
    """Hold the exclusive lock of *folder*: opening, growing and removal are done under it.

    The lock is an flock(2) on the folder, which the kernel frees when its holder dies.

    :param make: Makes the folder; called again if it was removed before the lock was taken.
    :raises FileNotFoundError: The folder does not exist, and *make* does not make it.
    """
    for attempt in range(1, ATTEMPTS + 1):
        if make is not None:
            make(folder)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if make is None or attempt == ATTEMPTS:
                raise
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(folder, descriptor):
                yield
                return
        finally:
            os.close(descriptor)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)


def _is_at(folder: str, descriptor: int) -> bool:
    """Return whether *descriptor* refers to the folder that has the path *folder* now."""
    try:
        there, here = os.lstat(folder), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def allocate(path: str, size: int, *, used: bool = False) -> None:
    """Allocate disk space for at least *size* bytes of the file *path*, which is made if missing.

    :param used: Whether other processes may write to it meanwhile. Where a file system cannot
        allocate space, the C library writes a zero into each block that begins with one, which may
        undo a concurrent write (posix_fallocate(3)). So space is then allocated beyond the end
        only, unless the file system is known to support allocation.
    :raises OSError: There is not enough space; the file keeps its length.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        found = os.fstat(descriptor)
        before = found.st_size
        if not before:
            _keep_in_place(descriptor)
        start = before if used and not keeps_its_space(found.st_dev) else 0
        try:
            if size > start:
                os.posix_fallocate(descriptor, start, size - start)
        except OSError:
            os.ftruncate(descriptor, before)  # otherwise it would keep the space allocated so far
            raise
    finally:
        os.close(descriptor)


def move_aside(path: str, lock: str, now: float) -> str:
    """Rename the damaged file *path*, and return its new path; the oldest such file is removed.

    The lock file is removed too: it describes this very file. Processes that have both open keep
    both, separate from processes that open new ones. Call it under :func:`alone`.

    :param now: Unix time in seconds.
    :raises OSError: The file cannot be renamed.
    """
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    place, number = f"{path}{DAMAGED}{moment}", 1
    while os.path.lexists(place):
        number += 1
        place = f"{path}{DAMAGED}{moment}-{number}"
    os.rename(path, place)
    with suppress(FileNotFoundError):
        os.unlink(lock)
    folder, name = os.path.split(path)
    others = [each for each in os.listdir(folder) if each.startswith(name + DAMAGED)]
    others.sort(key=lambda each: (os.lstat(os.path.join(folder, each)).st_mtime, each))
    for each in others[:-KEPT]:
        if os.path.join(folder, each) != place:
            os.unlink(os.path.join(folder, each))
    return place


def enlarged(path: str, size: int, wanted: int) -> tuple[int, OSError | None]:
    """Grow the file *path*, which others use, from *size* to *wanted* bytes, or by one step.

    :returns: The new size, and the error that prevented *wanted*.
    """
    lacking = None
    for attempt in (wanted, size + STEP):
        if size < attempt <= wanted:
            try:
                allocate(path, attempt, used=True)
            except OSError as error:
                lacking = error
            else:
                return attempt, lacking
    return size, lacking


def _keep_in_place(descriptor: int) -> None:
    """Disable copy-on-write for an empty file on btrfs (``chattr +C``): LMDB maps its lock file for
    writing on every file system."""
    flags = bytearray(8)
    with suppress(OSError):  # not supported by other file systems
        fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, flags)
        number = int.from_bytes(flags, sys.byteorder) | FS_NOCOW_FL
        fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, number.to_bytes(8, sys.byteorder))


def unused(lock: str) -> bool:
    """Return whether no process has the environment with the lock file *lock* open.

    Never call it while this process has it open: closing a file drops all POSIX locks on it.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # a process with LMDB open holds a shared lock on the first byte
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def fill_lock_file(path: str, size: int) -> bool:
    """Allocate the disk space of the lock file *path*, which LMDB maps, unless others use it.

    :returns: Whether others use it. It then stays unchanged, as they have mapped it.
    """
    found = os.path.getsize(path) if os.path.exists(path) else 0
    if found and not unused(path):
        return True
    allocate(path, max(found, size))
    return False
