"""Instances that never change, for who has them already but is asked for a source."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

from wsgigate.discovery import Instance
from wsgigate.discovery.sources import Found

__all__ = ["Static"]


class Static:
    """A source of the instances it is given, which are never asked for again.

    :param instances: They, each a URL or an :class:`~wsgigate.discovery.Instance`.
    :raises ValueError: One is no address, or there twice.
    """

    name = "static"

    def __init__(self, instances: Sequence[Instance | str]) -> None:
        made = [Instance(item) if isinstance(item, str) else item for item in instances]
        if len({instance.url for instance in made}) != len(made):
            raise ValueError("an instance is there twice")
        self._instances = tuple(made)

    def find(self, stopping: threading.Event) -> Found:
        """Return them."""
        return Found(self._instances, math.inf, certain=True)

    def close(self) -> None:
        """Do nothing."""
