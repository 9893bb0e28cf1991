"""What a way to balance is given and what it is asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

__all__ = ["M", "Member", "Policy", "others"]


class Member(Protocol):
    """An instance as a policy sees it.

    :ivar name: Tells it from others, in every worker the same: its URL.
    :ivar weight: Its share relative to the others, above 0; read when the members are renewed.
    :ivar in_flight: Requests that it has under way, as this worker sees it; read for each pick.
    """

    name: str
    weight: float
    in_flight: int


M = TypeVar("M", bound=Member)


class Policy(Protocol[M]):
    """Picks who takes the next request.

    Made with one argument, which gives numbers in [0, 1). It belongs to all threads of a worker,
    and whoever calls it holds a lock.

    :ivar timed: Whether it wants to know the time, and how long answers took.
    """

    timed: bool

    def renew(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
        """Take note of who may be picked from now on.

        :param members: At least one, in a stable order; no name twice.
        :param draining: Those that only go on with what they have begun.
        """

    def pick(self, key: str | None = None, avoid: Collection[M] = (), now: float = 0.0) -> M:
        """Return who takes the next request.

        :param key: Tells requests that belong together, for a policy that cares.
        :param avoid: Those that have failed this request already. They are picked only when there
            are no others.
        :param now: The time in seconds, for a policy that is *timed*.
        """

    def answered(self, member: M, seconds: float, now: float, failed: bool = False) -> None:
        """Take note that an answer began, for a policy that is *timed*.

        :param seconds: How long that took: not until its end, which may be the client's doing.
        """


def others(members: Sequence[M], avoid: Collection[M]) -> Sequence[M]:
    """Return *members* without those to *avoid*, or all of them when there are no others."""
    return [member for member in members if member not in avoid] or members
