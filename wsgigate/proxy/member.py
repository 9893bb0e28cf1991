"""One instance of a service as one worker sees it."""

from __future__ import annotations

import math

from wsgigate.discovery import Instance

__all__ = ["Member"]


class Member:
    """One instance in a pool: what this worker knows of it.

    :ivar name: Its URL.
    :ivar weight: Its share at the moment, above 0 for one that can be picked.
    :ivar well_since: When it became well, ``-inf`` for one that was from the beginning.
    """

    __slots__ = ("ejected", "healthy", "in_flight", "instance", "name", "weight", "well_since")

    def __init__(self, instance: Instance, well_since: float = -math.inf) -> None:
        self.instance = instance
        self.name = instance.url
        self.weight: float = instance.weight
        self.healthy = True
        self.ejected = False
        self.in_flight = 0
        self.well_since = well_since
