"""The results of the benchmark, as tables and as JSON."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.bout import Bout
from benchmarks.changes import Change, Comparison
from benchmarks.contenders import CONTENDERS
from benchmarks.picture import Bar
from benchmarks.targets import Reached, reached

__all__ = [
    "aligned",
    "bars",
    "calls_table",
    "changes_table",
    "document",
    "median",
    "micro_table",
    "server_table",
    "target_table",
    "trimmed",
]

_TITLES = {contender.name: contender.title for contender in CONTENDERS}
_COLUMNS = ("CPU µs/request", "requests/s", "p50 ms", "p99 ms", "errors", "peak MiB")


def median(rounds: Sequence[Bout]) -> Bout:
    """Return the median of each figure; the errors of all rounds, and the highest peak."""
    middle = [statistics.median(column) for column in zip(*rounds, strict=True)]
    errors = sum(bout.errors for bout in rounds)
    peak = max(bout.peak for bout in rounds)
    return Bout(*middle)._replace(errors=errors, peak=peak)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return *rows* as lines, the first underlined; all columns but the first to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def trimmed(text: str) -> str:
    """Return *text* without spaces at the ends of its lines."""
    return "\n".join(line.rstrip() for line in text.splitlines())


def server_table(found: Mapping[str, Bout]) -> str:
    """Return the table of all that were measured."""
    rows = [("one core for the server", *_COLUMNS)]
    for contender in CONTENDERS:
        bout = found.get(contender.name)
        if bout is not None:
            figures = (
                f"{bout.cpu:,.1f}",
                f"{bout.rate:,.0f}",
                f"{bout.p50:.2f}",
                f"{bout.p99:.2f}",
            )
            rows.append((contender.title, *figures, str(bout.errors), f"{bout.peak:.0f}"))
    return aligned(rows)


def target_table(figures: Sequence[Reached]) -> str:
    """Return the table of the figures to reach; empty if none was measured."""
    if all(figure.reached is None for figure in figures):
        return ""
    rows = [("figures to reach", "wanted", "reached", "met")]
    for what, wanted, value, met in figures:
        result = ("not measured", "") if value is None else (f"{value:.2f}", "yes" if met else "no")
        rows.append((what, wanted, *result))
    return aligned(rows)


def micro_table(costs: Mapping[str, float]) -> str:
    """Return the table of what each middleware costs."""
    rows = [("one middleware around nothing", "µs/request")]
    return aligned([*rows, *((name, f"{cost:.1f}") for name, cost in costs.items())])


def calls_table(calls: Mapping[str, float]) -> str:
    """Return the table of the Python calls of each kind of request."""
    rows = [("one request inside the gateway", "Python calls")]
    return aligned([*rows, *((name, f"{count:.1f}") for name, count in calls.items())])


def changes_table(comparison: Comparison) -> str:
    """Return the tables of what changed against the recorded run; empty if nothing is in both."""
    parts = []
    if comparison.servers:
        rows = [("against the recorded run", *_CHANGES)]
        for control in (True, False):
            group = [change for change in comparison.servers if change.control is control]
            if group:
                title = "(without wsgigate)" if control else "(wsgigate)"
                rows.append((title, *[""] * len(_CHANGES)))
                rows += [_change_row(change) for change in group]
        parts.append(aligned(rows))
        if comparison.machine is None:
            parts[-1] += "\n(no row without wsgigate is in both runs: the machine is not known)"
        else:
            parts[-1] += (
                f"\n(this machine takes {comparison.machine:.2f} times the recorded run's time, by"
                " the median of the rows without wsgigate)"
            )
    for unit, changes in (
        ("one middleware, µs", comparison.middlewares),
        ("one request, Python calls", comparison.calls),
    ):
        if changes:
            rows = [(f"against the recorded run: {unit}", *_CHANGES)]
            parts.append(aligned([*rows, *map(_change_row, changes)]))
    if parts and comparison.notes:
        parts[0] += "".join(f"\n({note})" for note in comparison.notes)
    return "\n\n".join(parts)


_CHANGES = ("recorded", "now", "ratio", "beside the machine", "noise", "")


def _change_row(change: Change) -> tuple[str, ...]:
    return (
        _TITLES.get(change.name, change.name),
        f"{change.recorded:,.1f}",
        f"{change.now:,.1f}",
        f"{change.ratio:.2f}",
        "" if change.control or change.adjusted is None else f"{change.adjusted:.2f}",
        f"{change.noise:.2f}",
        change.verdict,
    )


def bars(found: Mapping[str, Bout]) -> list[Bar]:
    """Return the bars of the picture: requests for each second of processor time."""
    made = [
        Bar(
            contender.title,
            1e6 / found[contender.name].cpu,
            f"p50 {found[contender.name].p50:.1f} ms, p99 {found[contender.name].p99:.1f} ms",
            not contender.control,
        )
        for contender in CONTENDERS
        if contender.name in found
    ]
    return sorted(made, key=lambda bar: -bar.value)


def document(
    rounds: Mapping[str, Sequence[Bout]],
    found: Mapping[str, Bout],
    costs: Mapping[str, float],
    calls: Mapping[str, float],
    settings: Mapping[str, Any],
    load_before: float,
) -> dict[str, Any]:
    """Return all of it for a JSON file.

    :param load_before: The load average of the machine before the run.
    """
    return {
        "machine": {
            "system": platform.platform(),
            "python": platform.python_version(),
            "processors": os.cpu_count(),
            "load_before": load_before,
        },
        "settings": dict(settings),
        "servers": {
            name: {**bout._asdict(), "rounds": [each._asdict() for each in rounds[name]]}
            for name, bout in found.items()
        },
        "targets": [figure._asdict() for figure in reached(found, costs)],
        "middlewares": dict(costs),
        "calls": dict(calls),
    }
