"""What sources that speak HTTP have in common in what they read."""

from __future__ import annotations

import json

from wsgigate.discovery.sources import SourceError

__all__ = ["read_json", "refused"]


def read_json(body: bytes) -> object:
    """Return what *body* says.

    :raises SourceError: It is not JSON.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise SourceError("its answer is not JSON") from error


def refused(status: int) -> SourceError:
    """Return the error that an answer other than 200 is."""
    if status in (401, 403):
        return SourceError(f"it answered {status}: the token is missing, or may not do this")
    return SourceError(f"it answered {status}")
