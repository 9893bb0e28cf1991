"""Private folders of this user, and what their file systems promise.

What workers share without a server lies in files. A folder that another user can write to would let
that user read, replace or link these files, so each folder is checked before its first use.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from hashlib import sha256

__all__ = [
    "FolderError",
    "check_file",
    "folder_name",
    "keeps_its_space",
    "own_folder",
    "user_folders",
]

PASSING = frozenset(
    [
        *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
        *(errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ENOLCK),
    ]
)
"""Errors of the system that may pass without a change of the configuration."""

SURE = frozenset({"ext4", "tmpfs", "xfs"})
"""File systems that overwrite a page in place. Others (btrfs, zfs) write it to a new place, which
needs space each time; those not named here are treated like them."""


class FolderError(Exception):
    """A folder or file cannot be used; the message names the cause and the remedy.

    :ivar lasting: Whether that lasts until the configuration or the folder changes.
    """

    def __init__(self, message: str, *, lasting: bool = True) -> None:
        super().__init__(message)
        self.lasting = lasting

    @classmethod
    def of_system(cls, error: OSError, trouble: str) -> FolderError:
        """Return an error for *error*; *trouble* begins its message."""
        return cls(f"{trouble}: {error.strerror}", lasting=error.errno not in PASSING)


def own_folder(path: str, *, private: bool = False) -> None:
    """Make *path* with mode 0700 unless it exists, and check that no other user can write to it.

    :param private: Whether no other user may read it either.
    :raises FolderError: It cannot be made, is a symbolic link or not a folder, belongs to another
        user, or is open to others.
    """
    try:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        found = os.lstat(path)
    except OSError as error:
        raise FolderError.of_system(error, f"the folder {path} cannot be made") from error
    if stat.S_ISLNK(found.st_mode):
        raise FolderError(f"{path} is a symbolic link, which is not followed; name the folder")
    if not stat.S_ISDIR(found.st_mode):
        raise FolderError(f"{path} is not a folder")
    if found.st_uid != os.geteuid():
        raise FolderError(
            f"the folder {path} belongs to user {found.st_uid}, this is user {os.geteuid()}"
        )
    if found.st_mode & (0o077 if private else 0o022):
        fix = "chmod 700" if private else "chmod go-w"
        raise FolderError(f"the folder {path} is open to other users; {fix} {path}")


def check_file(path: str) -> None:
    """Check that *path* is missing, or a regular file of this user.

    :raises FolderError: It is something else, or belongs to another user.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise FolderError.of_system(error, f"{path} cannot be read") from error
    if not stat.S_ISREG(found.st_mode):
        raise FolderError(f"{path} is not a regular file; move it or name another folder")
    if found.st_uid != os.geteuid():
        raise FolderError(f"{path} belongs to user {found.st_uid}, this is user {os.geteuid()}")


def folder_name(owner: str) -> str:
    """Return the name of the folder of *owner*, such as ``shop-0f3a5c7e9b1d``.

    :param owner: Identifies the gateway or app. Default: the running program, identified by its
        working directory and its arguments, which all workers of one server have in common.
    :raises OSError: The working directory is gone.
    """
    label = owner
    if not owner:
        owner = "\0".join([os.getcwd(), *sys.argv])
        label = f"{os.path.basename(sys.argv[0] or 'python')}-{os.path.basename(os.getcwd())}"
    slug = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-")[:40] or "app"
    digest = sha256(owner.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{slug}-{digest}"


def user_folders() -> list[str]:
    """Return the folders of this user that private folders may be in, in order of preference.

    These are ``$XDG_RUNTIME_DIR``, and ``$XDG_STATE_HOME`` or ``~/.local/state``.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # relative paths must be ignored (XDG Base Directory Specification, "Basics")
    bases = [runtime] if os.path.isabs(runtime) else []
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):
        state = os.path.join(os.path.expanduser("~"), ".local", "state")
    try:
        os.makedirs(state, 0o700, exist_ok=True)
    except OSError:
        pass  # own_folder reports the cause
    return [*bases, state]


def keeps_its_space(device: int, mounts: str | None = None) -> bool:
    """Return whether space allocated on *device* can always be written to afterwards.

    :param device: ``st_dev`` of the file.
    :param mounts: Contents of ``/proc/self/mountinfo`` (proc(5)). Default: read from there.
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
