"""Folders that are ours alone: made, found and checked before anything is kept in them."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from hashlib import sha256

from wsgigate.store import MisconfiguredStore, StoreError

__all__ = ["check_file", "of_system", "own_folder", "private_folder"]

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


def private_folder(owner: str, cure: str = "") -> str:
    """Return a folder that only this user can open, one per *owner*; it is made if missing.

    It lies under ``$XDG_RUNTIME_DIR/wsgigate``, or where that cannot be had under
    ``$XDG_STATE_HOME/wsgigate`` (``~/.local/state/wsgigate``).

    :param owner: Names the gateway or app; empty for the running program, known by its working
        directory and its arguments, which all workers of one server have in common.
    :param cure: What the error says to do. Default: to set ``store.url``.
    :raises MisconfiguredStore: Neither place can be used; says why and what to set.
    :raises StoreError: Neither can at the moment.
    """
    label = owner
    if not owner:
        try:
            owner = "\0".join([os.getcwd(), *sys.argv])
        except OSError as error:
            raise MisconfiguredStore(
                f"the working directory is gone: {error.strerror}; {cure or FIX}"
            ) from error
        label = f"{os.path.basename(sys.argv[0] or 'python')}-{os.path.basename(os.getcwd())}"
    slug = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-")[:40] or "app"
    digest = sha256(owner.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    errors: list[StoreError] = []
    for base in _bases():
        try:
            folder = os.path.join(base, "wsgigate")
            own_folder(folder, private=True)
            mine = os.path.join(folder, f"{slug}-{digest}")
            new = not os.path.lexists(mine)
            own_folder(mine, private=True)
            if new:
                _remove_leftovers(folder)
            return mine
        except StoreError as error:
            errors.append(error)
    lasting = all(isinstance(error, MisconfiguredStore) for error in errors)
    kind = MisconfiguredStore if lasting else StoreError
    reasons = "; ".join(map(str, errors))
    raise kind(f"there is no private folder for the store: {reasons}; {cure or FIX}")


def _remove_leftovers(base: str) -> None:
    """Remove folders beside a new one whose apps are gone."""
    from wsgigate.store.leftovers import remove_leftovers  # needs LMDB, which needs this module
    from wsgigate.store.shared import folders_in_use

    remove_leftovers(base, keep=folders_in_use())


def _bases() -> list[str]:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # relative paths are to be ignored (XDG Base Directory Specification, "Basics")
    bases = [runtime] if os.path.isabs(runtime) else []
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):
        state = os.path.join(os.path.expanduser("~"), ".local", "state")
    try:
        os.makedirs(state, 0o700, exist_ok=True)
    except OSError:
        pass  # own_folder then says what is wrong with it
    return [*bases, state]
