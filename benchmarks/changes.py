"""What changed against the recorded run, on a machine that may have become slower or faster.

The rows in which no code of wsgigate runs are the controls: the median of their ratios is how much
slower or faster the machine is. Every ratio of the project's own rows is divided by it. A row is
called faster or slower only where it changed by more than its own rounds differ, and by more than
the controls differ from their median.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["Change", "Comparison", "compare"]

_LEAST = 1.1
"""The noise of a middleware's time, of which only the least is recorded."""

_SETTINGS = ("threads", "connections", "switch_interval")


class Change(NamedTuple):
    """A figure in both runs; all ratios are new by recorded, so that less is faster."""

    name: str
    recorded: float
    now: float
    ratio: float
    adjusted: float | None
    """The ratio, divided by the machine's; None if that is not known."""
    noise: float
    """The factor by which it differs without a cause; 1 for a figure that is exact."""
    control: bool = False

    @property
    def verdict(self) -> str:
        """``faster`` or ``slower``; empty for a control, if unchanged, or if not adjusted."""
        if self.control or self.adjusted is None:
            return ""
        if max(self.adjusted, 1 / self.adjusted) <= self.noise:
            return ""
        return "faster" if self.adjusted < 1 else "slower"


class Comparison(NamedTuple):
    """What changed between two runs.

    :param machine: The median ratio of the controls; None if no control is in both runs.
    :param servers: The processor time per request, the controls first.
    :param middlewares: The time that each middleware adds.
    :param calls: The Python calls of a request, which no machine changes.
    :param notes: What else differs between the runs.
    """

    machine: float | None
    servers: list[Change]
    middlewares: list[Change]
    calls: list[Change]
    notes: list[str]

    def document(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        groups = ("servers", "middlewares", "calls")
        rows = {
            group: [
                {**change._asdict(), "verdict": change.verdict} for change in getattr(self, group)
            ]
            for group in groups
        }
        return {"machine": self.machine, "notes": self.notes, **rows}


def compare(
    recorded: Mapping[str, Any], now: Mapping[str, Any], controls: Iterable[str]
) -> Comparison:
    """Return what changed between two documents of :func:`benchmarks.table.document`.

    :param recorded: The document of the earlier run; what it lacks is left out.
    :param now: The document of this run.
    :param controls: The names of the servers in which no code of wsgigate runs.
    """
    controls = set(controls)
    before, after = recorded.get("servers", {}), now.get("servers", {})
    names = [name for name in after if name in before]
    ratios = [after[name]["cpu"] / before[name]["cpu"] for name in names if name in controls]
    machine = statistics.median(ratios) if ratios else None
    factor = machine or 1.0
    uncertain = statistics.median(
        [max(ratio / factor, factor / ratio) for ratio in ratios] or [1.0]
    )
    servers = []
    for name in names:
        control = name in controls
        rounds = max(_spread(before[name]), _spread(after[name]))
        noise = rounds if control else max(rounds, uncertain)
        times = before[name]["cpu"], after[name]["cpu"]
        servers.append(_change(name, *times, machine, noise=noise, control=control))
    servers.sort(key=lambda change: not change.control)
    return Comparison(
        machine,
        servers,
        _group(recorded, now, "middlewares", machine, noise=max(_LEAST, uncertain)),
        _group(recorded, now, "calls", 1.0, noise=1.0),
        _notes(recorded, now),
    )


def _group(
    recorded: Mapping[str, Any],
    now: Mapping[str, Any],
    key: str,
    machine: float | None,
    *,
    noise: float,
) -> list[Change]:
    before, after = recorded.get(key, {}), now.get(key, {})
    return [
        _change(name, before[name], after[name], machine, noise=noise)
        for name in after
        if before.get(name, 0) > 0 and after[name] > 0
    ]


def _change(
    name: str,
    before: float,
    after: float,
    machine: float | None,
    *,
    noise: float,
    control: bool = False,
) -> Change:
    ratio = after / before
    adjusted = None if machine is None else ratio / machine
    return Change(name, before, after, ratio, adjusted, noise, control)


def _spread(server: Mapping[str, Any]) -> float:
    """Return the time of the slowest round by that of the fastest."""
    times = [each["cpu"] for each in server.get("rounds", ())]
    return max(times) / min(times) if times and min(times) > 0 else 1.0


def _notes(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    notes = []
    for key, names in (("machine", ("python", "processors")), ("settings", _SETTINGS)):
        before, after = recorded.get(key, {}), now.get(key, {})
        notes += [
            f"{name}: {before[name]} in the recorded run, {after[name]} now"
            for name in names
            if name in before and name in after and before[name] != after[name]
        ]
    return notes
