"""Members of a pool for the tests of balancing, and what policies pick of them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from wsgigate.rules.balance import POLICIES

__all__ = ["Server", "chi_square", "made", "picked", "servers"]


@dataclass(eq=False)
class Server:
    name: str
    weight: float = 1.0
    in_flight: int = 0


def servers(count: int, *weights: float) -> list[Server]:
    return [Server(f"http://10.0.0.{n}:8000", (weights or (1.0,) * count)[n]) for n in range(count)]


def made(name: str, seed: int = 7) -> Any:
    return POLICIES[name](random.Random(seed).random)


def picked(policy: Any, times: int, **options: Any) -> Counter[str]:
    return Counter(policy.pick(**options).name for _ in range(times))


def chi_square(counts: Counter[str], members: list[Server]) -> float:
    total, weight = sum(counts.values()), sum(member.weight for member in members)
    expected = {member.name: total * member.weight / weight for member in members}
    return sum((counts[name] - each) ** 2 / each for name, each in expected.items())
