"""What LMDB's failures mean, in the operator's words."""

from __future__ import annotations

import os
import struct
from errno import EACCES, EISDIR, ENOTDIR, EPERM, EROFS

import lmdb

from wsgigate.store import DamagedStore, MisconfiguredStore, StoreError
from wsgigate.store.folder import of_system
from wsgigate.store.verify import Damaged, OtherVersion

__all__ = ["DAMAGE", "FAILURES", "RESIZED", "Full", "explained"]


class Full(Exception):
    """There is no room for another value.

    :param lacking: Why the file cannot be made larger, if it might be.
    """

    def __init__(self, lacking: OSError | None = None) -> None:
        super().__init__(lacking)
        self.lacking = lacking


FAILURES = (Full, lmdb.Error, struct.error)
"""What a transaction fails with; ``struct.error``: a value too short to begin with its expiry."""

RESIZED = lmdb.MapResizedError
"""What a transaction begins with after another process has made the file larger."""

DAMAGE = (Damaged, lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError)
"""What a file is opened or used with that is moved aside then."""


_LASTING = [os.strerror(code) for code in (EACCES, EPERM, EROFS, ENOTDIR, EISDIR)]
"""What LMDB says of the system's errors that do not pass by themselves."""


def explained(error: Exception, path: str, *, most: int, readers: int) -> StoreError:
    """Return what the operator is to know of *error*.

    :param path: The file.
    :param most: How many bytes may be kept in it.
    :param readers: How many processes may use it.
    """
    if isinstance(error, StoreError):
        return error
    if isinstance(error, Full) and error.lacking is not None:
        return StoreError(f"{path} cannot be made larger: {error.lacking.strerror}")
    if isinstance(error, Full | lmdb.MapFullError):
        return StoreError(
            f"{path} is full of values that are still alive: map_size is {most} bytes"
        )
    if isinstance(error, lmdb.ReadersFullError):
        return StoreError(f"{path} is in use by more than {readers} processes")
    if isinstance(error, OtherVersion | lmdb.VersionMismatchError):
        return MisconfiguredStore(
            f"{path} is of another version of LMDB ({error}); remove it or name another folder"
        )
    if isinstance(error, DAMAGE):
        return DamagedStore(
            f"{path} is damaged or no LMDB file ({error}); it is moved aside when a gateway opens "
            "it, and a new one begins without its values"
        )
    if isinstance(error, OSError):
        return of_system(error, f"{path} cannot be used")
    lasting = isinstance(error, lmdb.Error) and any(text in str(error) for text in _LASTING)
    kind = MisconfiguredStore if lasting else StoreError
    return kind(f"{path} cannot be used: {error}")
