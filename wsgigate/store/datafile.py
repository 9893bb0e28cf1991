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
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

__all__ = [
    "DAMAGED",
    "STEP",
    "allocate",
    "alone",
    "enlarged",
    "fill_lock_file",
    "keeps_its_space",
    "move_aside",
    "rounded",
    "unused",
]

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
