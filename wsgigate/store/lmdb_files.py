"""The file beneath LMDB: its disk space is taken before it is used.

LMDB writes into memory that is the file, which costs a quarter of what writing to the file does.
Where a page has no disk space behind it, a full disk is then no error but a signal that kills the
process (SIGBUS). So the file is never longer than the space it has been given, and grows by one
process at a time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from operator import ge, le
from typing import IO, Any, NamedTuple

from wsgigate.store import MisconfiguredStore, StoreError

__all__ = [
    "DAMAGED",
    "Damaged",
    "OtherVersion",
    "STEP",
    "allocate",
    "alone",
    "check_file",
    "enlarged",
    "fill_lock_file",
    "keeps_its_space",
    "move_aside",
    "of_system",
    "own_folder",
    "reach",
    "rounded",
    "unused",
    "verify",
]


# Folders that are ours alone: made, found and checked before anything is kept in them.

PASSING = frozenset(
    [
        *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
        *(errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ENOLCK),
    ]
)
"""The errors of the system that may pass without a change of the configuration."""

FIX = 'set store.url = "lmdb:/path" to a folder that this user may write'


def of_system(error: OSError, trouble: str) -> StoreError:
    """Return what an *error* of the system means: *trouble* that passes, or that does not."""
    kind = StoreError if error.errno in PASSING else MisconfiguredStore
    return kind(f"{trouble}: {error.strerror}")


def own_folder(path: str, *, private: bool = False) -> None:
    """Make *path* with mode 0700 unless it is there, and see that nobody else can change it.

    :param private: Nobody else may read it either.
    :raises MisconfiguredStore: It cannot be made, or is a symlink, no folder, another user's, or
        open to others; says which and what to do.
    :raises StoreError: It cannot be made at the moment, as the disk is full or the like.
    """
    try:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        found = os.lstat(path)
    except OSError as error:
        raise of_system(error, f"the folder {path} cannot be made") from error
    if stat.S_ISLNK(found.st_mode):
        raise MisconfiguredStore(
            f"{path} is a symbolic link, which is not followed; name the folder"
        )
    if not stat.S_ISDIR(found.st_mode):
        raise MisconfiguredStore(f"{path} is not a folder")
    if found.st_uid != os.geteuid():
        raise MisconfiguredStore(
            f"the folder {path} belongs to user {found.st_uid}, this is user {os.geteuid()}"
        )
    if found.st_mode & (0o077 if private else 0o022):
        fix = "chmod 700" if private else "chmod go-w"
        raise MisconfiguredStore(f"the folder {path} is open to other users; {fix} {path}")


def check_file(path: str) -> None:
    """See that *path* is missing, or a plain file of ours.

    :raises MisconfiguredStore: It is something else, or another user's.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise of_system(error, f"{path} cannot be read") from error
    if not stat.S_ISREG(found.st_mode):
        raise MisconfiguredStore(f"{path} is not a plain file; move it away or name another folder")
    if found.st_uid != os.geteuid():
        raise MisconfiguredStore(
            f"{path} belongs to user {found.st_uid}, this is user {os.geteuid()}"
        )


# Reads an LMDB file from its root to its last page, since LMDB itself trusts what it finds.
#
# A page that points to where there is none makes LMDB stop the process or read foreign memory,
# which no exception handler helps against. The format is that of LMDB 0.9 on 64 bits (mdb.c:
# MDB_page, MDB_node, MDB_meta, MDB_db; data version 1).

MAGIC, VERSION = 0xBEEFC0DE, 1

HEAD = 16  # bytes of a page before its node offsets: pgno, pad, flags, lower, upper

NODE = 8  # bytes of a node before its key: size or page (low, high), flags, length of the key

BRANCH, LEAF, OVERFLOW, META = 0x01, 0x02, 0x04, 0x08

BIG = 0x01  # a node's value is on pages of its own

INTEGER_KEYS = 0x08

PAGES = {1 << bits for bits in range(9, 17)}

NONE = 2**64 - 1  # the root of an empty tree

DEEPEST = 32  # levels that LMDB itself can follow

KEY_BYTES = 511  # the longest that LMDB takes

_head = struct.Struct("<QHHHH")

_meta = struct.Struct("<II16x")

_tree = struct.Struct("<IHHQQQQQ")

_last = struct.Struct("<QQ")

_node = struct.Struct("<HHHH")

_number = struct.Struct("<Q")


class Damaged(Exception):
    """The file is none of LMDB's, or not whole; says where."""


class OtherVersion(Damaged):
    """The file is LMDB's, and of a version that this one does not read."""


class _Tree(NamedTuple):
    pad: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int


class _Node(NamedTuple):
    at: int
    """Where on its page."""
    low: int
    high: int
    """The size of its value, or together with the flags the page below it."""
    flags: int
    key: int
    """The length of its key."""


class _Meta(NamedTuple):
    size: int
    """Bytes in a page."""
    free: _Tree
    main: _Tree
    last: int
    """The last page in use."""
    transaction: int


def reach(file: IO[bytes]) -> int:
    """Return where the last page in use ends.

    :raises Damaged: It is no LMDB file.
    """
    meta = _newest(file)
    return (meta.last + 1) * meta.size


def verify(file: IO[bytes]) -> None:
    """See that every page in use is where it should be, and what it should be.

    The contents of keys and values are not judged: a flipped bit in one of them is another value.

    :raises Damaged: One is not; says which.
    """
    if sys.byteorder != "little" or sys.maxsize < 2**32:
        return  # another layout
    meta = _newest(file)
    length = file.seek(0, 2)
    if length < (meta.last + 1) * meta.size:
        raise Damaged(f"it is cut short: {length} bytes of {(meta.last + 1) * meta.size}")
    seen = bytearray(meta.last + 1)
    seen[0] = seen[1] = 1
    for value in _walk(file, meta, meta.free, seen):
        pages = array("Q", value[: len(value) & ~7])
        free = pages[1 : 1 + pages[0]] if pages else pages
        if not pages or pages[0] >= len(pages) or any(map(le, free, free[1:])):
            raise Damaged("its list of free pages is broken")
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
        raise Damaged("its two heads differ")
    return max(metas, key=lambda meta: meta.transaction)


def _meta_of(raw: bytes) -> _Meta:
    if len(raw) < HEAD + 136:
        raise Damaged("it is too short")
    magic, version = _meta.unpack_from(raw, HEAD)
    if not _head.unpack_from(raw)[2] & META or magic != MAGIC:
        raise Damaged("it does not begin as one")
    if version != VERSION:
        raise OtherVersion(f"it is of the format {version}, not {VERSION}")
    free = _Tree(*_tree.unpack_from(raw, HEAD + 24))
    main = _Tree(*_tree.unpack_from(raw, HEAD + 72))
    last, transaction = _last.unpack_from(raw, HEAD + 120)
    if free.pad not in PAGES or not 1 <= last < 2**40:
        raise Damaged("its head is broken")
    if (free.flags & 0x7FFF, main.flags & 0x7FFF) != (INTEGER_KEYS, 0):
        raise Damaged("its trees are of an unknown kind")
    return _Meta(free.pad, free, main, last, transaction)


def _mark(seen: bytearray, page: int, count: int = 1) -> None:
    if page + count > len(seen) or any(seen[page : page + count]):
        raise Damaged(f"page {page} is used twice, or beyond the end")
    seen[page : page + count] = b"\1" * count


def _walk(file: IO[bytes], meta: _Meta, tree: _Tree, seen: bytearray) -> Iterator[bytes]:
    """Yield the values of *tree*: of all when it is that of free pages, else the first 8 bytes."""
    if tree.root == NONE:
        return
    whole = tree is meta.free
    entries = 0
    if tree.depth > DEEPEST:
        raise Damaged("it is too deep")
    order = _as_number if whole else bytes
    # Of each page: how far it is from the leaves, and between which keys all of its own are.
    waiting: list[tuple[int, int, Any, Any]] = [(tree.root, tree.depth, None, None)]
    while waiting:
        number, level, least, below = waiting.pop()
        _mark(seen, number)
        file.seek(number * meta.size)
        page = file.read(meta.size)
        nodes = list(_nodes(page, number, LEAF if level == 1 else BRANCH))
        if whole and any(node.key < 8 for node in nodes[level > 1 :]):
            raise Damaged(f"page {number} has a value of an unknown kind")
        keys: list[Any] = [order(page[at + NODE : at + NODE + key]) for at, _, _, _, key in nodes]
        if level > 1:
            keys[0] = least  # LMDB does not read the first one
        inner = keys if least is not None or level == 1 else keys[1:]
        if any(map(ge, inner, inner[1:])) or (
            inner and ((least is not None and inner[0] < least) or not _under(inner[-1], below))
        ):
            raise Damaged(f"page {number} has keys out of order")
        if level > 1:
            children = [low | high << 16 | flags << 32 for _, low, high, flags, _ in nodes]
            bounds = zip(children, keys, [*keys[1:], below], strict=True)
            waiting += [(child, level - 1, *bound) for child, *bound in bounds]
            continue
        if whole and keys and not 0 < keys[-1] <= meta.transaction:
            raise Damaged("its list of free pages is from the future")
        for at, low, high, flags, length in nodes:
            entries += 1
            size, begin = low | high << 16, at + NODE + length
            if flags & ~BIG:
                raise Damaged(f"page {number} has a value of an unknown kind")
            if not flags:
                yield page[begin : begin + size]
                continue
            first = _number.unpack_from(page, begin)[0]
            count = (HEAD + size - 1) // meta.size + 1
            _mark(seen, first, count)
            file.seek(first * meta.size)
            head = file.read(HEAD + (size if whole else min(size, 8)))
            if _head.unpack_from(head)[0] != first or _head.unpack_from(head)[2] != OVERFLOW:
                raise Damaged(f"page {first} is not what it should be")
            if int.from_bytes(head[12:16], "little") != count:
                raise Damaged(f"page {first} has another length than it should")
            yield head[HEAD:]
    if entries != tree.entries:
        raise Damaged(f"it has {entries} entries of {tree.entries}")


def _as_number(key: bytes) -> int:
    return int.from_bytes(key, "little")


def _under(key: Any, bound: Any) -> bool:
    return bound is None or key < bound


def _nodes(page: bytes, number: int, kind: int) -> Iterator[_Node]:
    """Yield the nodes of *page*, in the order of their keys."""
    own, _, flags, lower, upper = _head.unpack_from(page)
    if own != number or flags != kind:
        raise Damaged(f"page {number} is not what it should be")
    if not HEAD < lower <= upper <= len(page) or lower % 2:
        raise Damaged(f"page {number} is broken")
    places = struct.unpack_from(f"<{(lower - HEAD) // 2}H", page, HEAD)
    begin = upper
    for at in sorted(places):  # LMDB keeps them side by side up to the end of the page
        if at != begin or at > len(page) - NODE:
            raise Damaged(f"page {number} has a node where there should be none")
        low, high, flags, length = _node.unpack_from(page, at)
        if length > KEY_BYTES:
            raise Damaged(f"page {number} has a key that is too long")
        data = 0 if kind == BRANCH else 8 if flags & BIG else low | high << 16
        begin += NODE + length + data + (length + data) % 2
    if begin != len(page):
        raise Damaged(f"page {number} has a node beyond its end")
    for at in places:
        yield _Node(at, *_node.unpack_from(page, at))


STEP = 1024 * 1024
"""The file's length is a multiple of it."""

DAMAGED = ".damaged-"
"""What is put after the name of a file that was moved aside; the time follows."""

KEPT = 3
"""How many of them are kept: a file may be as large as the store may become."""

SURE = frozenset({"ext4", "tmpfs", "xfs"})
"""File systems that write a page where it is. Others (btrfs, zfs) write it anew somewhere else, for
which they need space each time; and nothing is known of those that are not named here."""

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_NOCOW_FL = 0x80086601, 0x40086602, 0x00800000
"""ioctl_iflags(2), as on 64 bits."""


def rounded(size: int) -> int:
    """Return *size* rounded up to a length that the file may have."""
    return max(STEP, -(-size // STEP) * STEP)


ATTEMPTS = 10
"""How often a folder is made anew that others remove at the same time."""


@contextmanager
def alone(folder: str, make: Callable[[str], object] | None = None) -> Iterator[None]:
    """Let no other process open the file, make it larger or remove the folder meanwhile.

    The kernel takes the lock from a process that dies.

    :param make: Makes the folder; called again if it was removed before the lock was had.
    :raises FileNotFoundError: The folder is gone, and *make* does not make it.
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
    """Return whether what *descriptor* refers to is what is called *folder* now."""
    try:
        there, here = os.lstat(folder), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def allocate(path: str, size: int, *, used: bool = False) -> None:
    """Give the file *path*, which is made if missing, disk space for *size* bytes at least.

    :param used: Others may write to it meanwhile. Where a file system cannot take space, the C
        library writes a zero into each block that begins with none, which may undo what somebody
        wrote there at that moment (posix_fallocate(3)): so only what is beyond the end is taken,
        unless the file system is known to be able to.
    :raises OSError: There is not so much; the file is as long as before.
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
            os.ftruncate(descriptor, before)  # else it keeps what little there was
            raise
    finally:
        os.close(descriptor)


def move_aside(path: str, lock: str, now: float) -> str:
    """Give the damaged file *path* another name, and return that; the oldest such file goes.

    The lock file goes away with it: it describes this very file, and whoever has both open keeps
    both, without meeting those that open new ones. To be called while :func:`alone`.

    :param now: The time, in seconds since 1970.
    :raises OSError: It cannot be renamed.
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
    """Give the file *path*, which others use and has *size* bytes, *wanted* bytes or one step more.

    :returns: How many it has then, and why it has not what was wanted.
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
    """Have an empty file written where it is on btrfs too (``chattr +C``): LMDB maps its lock file
    for writing everywhere."""
    flags = bytearray(8)
    with suppress(OSError):  # other file systems know no such thing
        fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, flags)
        number = int.from_bytes(flags, sys.byteorder) | FS_NOCOW_FL
        fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, number.to_bytes(8, sys.byteorder))


def unused(lock: str) -> bool:
    """Tell whether no process has the environment open whose lock file is *lock*.

    Not to be asked while this process has: to close a file drops all locks on it (POSIX).
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # whoever has LMDB open holds its first byte, shared
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def fill_lock_file(path: str, size: int) -> bool:
    """Give the lock file *path* its disk space, as LMDB maps it, unless others use it.

    :returns: Whether they do. It then stays as it is, as they have mapped it so.
    """
    found = os.path.getsize(path) if os.path.exists(path) else 0
    if found and not unused(path):
        return True
    allocate(path, max(found, size))
    return False


def keeps_its_space(device: int, mounts: str | None = None) -> bool:
    """Tell whether what was allocated on *device* can be written there for ever after.

    :param device: ``st_dev`` of the file.
    :param mounts: What ``/proc/self/mountinfo`` says (proc(5)); read unless given.
    """
    if mounts is None:
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
                mounts = file.read()
        except OSError:
            return False
    wanted = f"{os.major(device)}:{os.minor(device)}"
    kinds = set()
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split(" ")[2:3] == [wanted]:
            kinds.add(source.partition(" ")[0])
    return bool(kinds) and kinds <= SURE
