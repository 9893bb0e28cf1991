"""The results of the benchmark, as tables and as JSON."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.bout import Bout
from benchmarks.contenders import CONTENDERS, TARGETS
from benchmarks.micro import BUDGET, ONE
from benchmarks.picture import Bar

__all__ = [
    "aligned",
    "bars",
    "document",
    "median",
    "micro_table",
    "server_table",
    "target_table",
    "trimmed",
]

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


def _targets(found: Mapping[str, Bout]) -> list[tuple[str, str, float, float, float]]:
    """Return the targets with results: name, base, wanted, by processor time, by clock."""
    return [
        (name, base, times, found[base].cpu / found[name].cpu, found[name].rate / found[base].rate)
        for name, base, times in TARGETS
        if name in found and base in found
    ]


def target_table(found: Mapping[str, Bout]) -> str:
    """Return the target ratios, each by processor time and by the clock."""
    titles = {contender.name: contender.title for contender in CONTENDERS}
    rows = [("how many times as fast", "wanted", "by CPU", "by clock")]
    for name, base, times, by_cpu, by_clock in _targets(found):
        what = f"{titles[name]} : {titles[base]}"
        rows.append((what, f"{times:.2f}", f"{by_cpu:.2f}", f"{by_clock:.2f}"))
    return aligned(rows) if len(rows) > 1 else ""


def micro_table(costs: Mapping[str, float]) -> str:
    """Return the table of what each middleware costs."""
    rows = [("one middleware around nothing", "µs/request")]
    rows += [(name, f"{cost:.1f}") for name, cost in costs.items()]
    goals = f"(to be reached: {ONE:.0f} µs for the Limiter, {BUDGET:.0f} µs for the full stack)"
    return f"{aligned(rows)}\n{goals}"


def bars(found: Mapping[str, Bout]) -> list[Bar]:
    """Return the bars of the picture: requests for each second of processor time."""
    made = [
        Bar(
            contender.title,
            1e6 / found[contender.name].cpu,
            f"p50 {found[contender.name].p50:.1f} ms, p99 {found[contender.name].p99:.1f} ms",
            contender.title.startswith("wsgigate"),
        )
        for contender in CONTENDERS
        if contender.name in found
    ]
    return sorted(made, key=lambda bar: -bar.value)


def document(
    rounds: Mapping[str, Sequence[Bout]],
    found: Mapping[str, Bout],
    costs: Mapping[str, float],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return all of it for a JSON file."""
    return {
        "machine": {
            "system": platform.platform(),
            "python": platform.python_version(),
            "processors": os.cpu_count(),
            "load_before": os.getloadavg()[1],
        },
        "settings": dict(settings),
        "servers": {
            name: {**bout._asdict(), "rounds": [each._asdict() for each in rounds[name]]}
            for name, bout in found.items()
        },
        "targets": [
            {"name": name, "base": base, "wanted": times, "by_cpu": cpu, "by_clock": clock}
            for name, base, times, cpu, clock in _targets(found)
        ],
        "middlewares": dict(costs),
    }
