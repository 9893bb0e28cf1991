"""The figures to reach: each is a ratio within one run, or the time of a middleware."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from benchmarks.bout import Bout

__all__ = ["TARGETS", "Reached", "Target", "reached"]

Measured = Mapping[str, Bout]
Costs = Mapping[str, float]


class Target(NamedTuple):
    """A figure to reach.

    :param what: What is compared, for the table.
    :param wanted: The bound.
    :param at_least: Whether the bound is the least that is wanted; otherwise it is the most.
    :param figure: Returns the figure from the medians of the contenders and the costs of the
        middlewares in microseconds. :raises KeyError: One of them was not measured.
    """

    what: str
    wanted: float
    at_least: bool
    figure: Callable[[Measured, Costs], float]


class Reached(NamedTuple):
    """A figure to reach, and what a run reached; None if it was not measured."""

    what: str
    wanted: str
    reached: float | None
    met: bool | None


def _time(name: str, base: str) -> Callable[[Measured, Costs], float]:
    """Return what computes the processor time of *name*, as a multiple of the time of *base*."""
    return lambda found, costs: found[name].cpu / found[base].cpu


def _speed(names: tuple[str, ...], base: str) -> Callable[[Measured, Costs], float]:
    """Return what computes how fast the fastest of *names* is, as a multiple of *base*."""

    def figure(found: Measured, costs: Costs) -> float:
        times = [found[name].cpu for name in names if name in found]
        if not times:
            raise KeyError(names[0])
        return found[base].cpu / min(times)

    return figure


def _tail(name: str) -> Callable[[Measured, Costs], float]:
    return lambda found, costs: found[name].p99 / found[name].p50


def _cost(name: str) -> Callable[[Measured, Costs], float]:
    return lambda found, costs: costs[name]


TARGETS = (
    Target("CPU, hello world: GateWorker / gthread", 0.33, False, _time("gunicorn", "gthread")),
    Target(
        "CPU, full stack on GateWorker / hello world on gthread",
        1.0,
        False,
        _time("gunicorn-full", "gthread"),
    ),
    Target(
        "speed, full stack on GateWorker / requests.Session",
        5.0,
        True,
        _speed(("gunicorn-full",), "naive"),
    ),
    Target(
        "speed, full stack on GateWorker or granian / Envoy",
        0.7,
        True,
        _speed(("gunicorn-full", "granian-full"), "envoy"),
    ),
    Target(
        "speed, forward on GateWorker or granian / nginx",
        0.2,
        True,
        _speed(("gunicorn-bare", "granian-bare"), "nginx"),
    ),
    Target("µs, all middlewares of the full stack", 35.0, False, _cost("full stack")),
    Target("µs, Limiter alone on LMDB", 8.0, False, _cost("Limiter")),
    Target("p99 / p50, full stack on GateWorker", 2.5, False, _tail("gunicorn-full")),
    Target("p99 / p50, full stack on granian", 2.5, False, _tail("granian-full")),
)


def reached(found: Measured, costs: Costs) -> list[Reached]:
    """Return every figure to reach, with what was reached.

    :param found: The medians of the contenders, by name.
    :param costs: Microseconds that each middleware adds, by name.
    """
    results = []
    for what, wanted, at_least, figure in TARGETS:
        bound = f"{'at least' if at_least else 'at most'} {wanted:g}"
        try:
            value = figure(found, costs)
        except KeyError:
            results.append(Reached(what, bound, None, None))
            continue
        met = value >= wanted if at_least else value <= wanted
        results.append(Reached(what, bound, value, met))
    return results
