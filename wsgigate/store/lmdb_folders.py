"""The private folder of an app's store, and the removal of folders whose apps are gone.

Each app and gateway without an explicit store has its own folder under the user's runtime or state
folder, named after the file of its code. An app that was moved leaves a folder behind. So a process
that makes a new folder checks some of those beside it.

A folder is removed only when nothing can be lost by it:

- No process has its store open, which LMDB's lock file shows, and none can open it meanwhile: that
  needs the lock of the folder (:func:`wsgigate.store.lmdb_files.alone`), which is held here.
- No value in it is alive, so a deny list is kept for as long as its tokens are valid.
- It was not modified for a day, and holds nothing but the files of LMDB.

A process that opens the folder just afterwards makes it anew, and finds what it would have found:
no value.
"""

from __future__ import annotations

import os
import re
import stat
import time
from itertools import islice

from wsgigate.runtime.folders import folder_name, user_folders
from wsgigate.store import MisconfiguredStore, StoreError, lmdb_files
from wsgigate.store.lmdb import folders_in_use
from wsgigate.store.lmdb_environment import has_live_values
from wsgigate.store.lmdb_files import FIX, own_folder

__all__ = ["private_folder", "remove_leftovers"]


AGE = 86400.0
"""Seconds without a modification before a folder is removed."""

MAX_CHECKED, MAX_REMOVED = 256, 16
"""Maximum number of folders checked, and removed, at a time: a request may wait for it."""

_NAME = re.compile(r"[A-Za-z0-9-]+-[0-9a-f]{12}")

_FILES = {"data.mdb", "lock.mdb"}

_ASIDE = "data.mdb" + lmdb_files.DAMAGED


def remove_leftovers(base: str, *, keep: frozenset[str], now: float | None = None) -> int:
    """Remove folders under *base* that no app uses any more; return their number.

    :param base: The folder of the user's private folders.
    :param keep: Folders that this process uses, open or closed: their lock files must not be
        opened.
    :param now: Unix time in seconds. Default: the present.
    """
    now = time.time() if now is None else now
    removed = 0
    try:
        with os.scandir(base) as entries:
            paths = [entry.path for entry in islice(entries, MAX_CHECKED)]
    except OSError:
        return 0
    for path in paths:
        if removed == MAX_REMOVED:
            break
        if os.path.realpath(path) not in keep and _NAME.fullmatch(os.path.basename(path)):
            try:
                removed += _removed(path, now)
            except OSError:
                pass  # another process was faster, or it may not be removed
    return removed


def _removed(folder: str, now: float) -> bool:
    if not _is_old(folder, now):
        return False
    with lmdb_files.alone(folder):
        names = set(os.listdir(folder))
        lock = os.path.join(folder, "lock.mdb")
        ours = all(name in _FILES or name.startswith(_ASIDE) for name in names)
        if not ours or not _is_old(folder, now):
            return False
        if "lock.mdb" in names and not lmdb_files.unused(lock):
            return False
        if "data.mdb" in names and has_live_values(folder, now):
            return False
        for name in names:
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
    return True


def _is_old(folder: str, now: float) -> bool:
    """Return whether *folder* is a folder of this user that was not modified for a day."""
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return False
    latest = found.st_mtime
    for name in os.listdir(folder):
        latest = max(latest, os.lstat(os.path.join(folder, name)).st_mtime)
    return now - latest >= AGE


def private_folder(owner: str, cure: str = "") -> str:
    """Return the private folder of *owner*, with access for this user only; made if missing.

    It lies under ``$XDG_RUNTIME_DIR/wsgigate``, or if that cannot be used under
    ``$XDG_STATE_HOME/wsgigate`` (``~/.local/state/wsgigate``).

    :param owner: Identifies the gateway or app. Default: the running program, identified by its
        working directory and its arguments, which all workers of one server have in common.
    :param cure: The remedy that the error recommends. Default: to set ``store.url``.
    :raises MisconfiguredStore: Neither place can be used; the message has the cause and the remedy.
    :raises StoreError: Neither place can be used at the moment.
    """
    try:
        name = folder_name(owner)
    except OSError as error:
        raise MisconfiguredStore(
            f"the working directory is gone: {error.strerror}; {cure or FIX}"
        ) from error
    errors: list[StoreError] = []
    for base in user_folders():
        try:
            folder = os.path.join(base, "wsgigate")
            own_folder(folder, private=True)
            mine = os.path.join(folder, name)
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
    remove_leftovers(base, keep=folders_in_use())
