"""The instances of one service as one worker sees them: which are well, and how busy each is."""

from __future__ import annotations

import random as _random
import threading
from collections.abc import Callable, Sequence

from wsgigate.discovery import Instance
from wsgigate.rules.balance import two_choices

__all__ = ["Lease", "Pool"]


class Member:
    """One instance in a pool: what this worker knows of it."""

    __slots__ = ("healthy", "in_flight", "instance")

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.healthy = True
        self.in_flight = 0


class Lease:
    """One request's hold on an instance, until it is released."""

    __slots__ = ("_member", "_pool", "instance")

    def __init__(self, pool: Pool, member: Member) -> None:
        self.instance = member.instance
        self._pool = pool
        self._member: Member | None = member

    def release(self, error: Exception | None = None) -> None:
        """Take note that the request has ended, by *error* or not; again, and it does nothing."""
        member, self._member = self._member, None
        if member is not None:
            self._pool._release(member)


class Pool:
    """The instances of one service, and who takes the next request.

    An instance is available while it is healthy and its weight is not 0. When fewer than *panic* of
    the instances are, their health is ignored: then it is more likely that the checks are wrong, or
    that the few left would drown, than that most of a service is gone.

    :param service: The service's name.
    :param instances: Its instances; no URL twice.
    :param panic: The share of available instances below which health is ignored, 0 to 1.
    :param random: Gives numbers in [0, 1). The module's own function by default: it is seeded anew
        in every forked worker, so workers do not march in step.
    """

    def __init__(
        self,
        service: str,
        instances: Sequence[Instance],
        *,
        panic: float = 0.5,
        random: Callable[[], float] = _random.random,
    ) -> None:
        urls = [instance.url for instance in instances]
        if len(set(urls)) != len(urls):
            raise ValueError(f"the service {service!r} has an instance twice")
        if not 0 <= panic <= 1:
            raise ValueError(f"panic is a share between 0 and 1, got {panic}")
        self.service = service
        self.panic = panic
        self._random = random
        self._lock = threading.Lock()
        self._members = {instance.url: Member(instance) for instance in instances}
        self._candidates: tuple[Member, ...] = ()
        self._weights: tuple[int, ...] = ()
        self._choose_candidates()

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The instances, well or not."""
        return tuple(member.instance for member in self._members.values())

    def available(self) -> tuple[Instance, ...]:
        """Return the instances that are healthy and not drained."""
        return tuple(
            member.instance
            for member in self._members.values()
            if member.healthy and member.instance.weight
        )

    def mark(self, url: str, healthy: bool) -> None:
        """Take note of whether the instance at *url* is healthy; an unknown one is ignored."""
        member = self._members.get(url)
        if member is None or member.healthy == healthy:
            return
        with self._lock:
            member.healthy = healthy
            self._choose_candidates()

    def pick(self) -> Lease | None:
        """Return a hold on the instance for the next request, which counts as in flight with it.

        :returns: ``None`` when the service has no instance that takes requests.
        """
        with self._lock:
            candidates = self._candidates
            if not candidates:
                return None
            loads = [member.in_flight for member in candidates]
            member = candidates[two_choices(self._weights, loads, self._random)]
            member.in_flight += 1
        return Lease(self, member)

    def in_flight(self) -> dict[str, int]:
        """Return by URL how many of this worker's requests each instance is serving."""
        return {url: member.in_flight for url, member in self._members.items()}

    def _release(self, member: Member) -> None:
        with self._lock:
            member.in_flight -= 1

    def _choose_candidates(self) -> None:
        open_ = [member for member in self._members.values() if member.instance.weight]
        well = [member for member in open_ if member.healthy]
        self._candidates = tuple(open_ if len(well) < self.panic * len(open_) else well)
        self._weights = tuple(member.instance.weight for member in self._candidates)
