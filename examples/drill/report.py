"""The result of a drill, as text: the timeline, the figures, and the targets that they reach.

python report.py ONE.json OTHER.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from figures import Slice, Trouble

__all__ = ["Goal", "aligned", "figure_table", "goal_lines", "goals", "timeline"]

TIMEOUT = 0.5
"""The timeout of an attempt in seconds, as in the gateway's file."""

_BEGAN = {"killed": "is killed", "hung": "hangs", "failing": "returns 500"}
_ENDED = {"killed": "is started again", "hung": "resumes", "failing": "recovers"}


class Goal(NamedTuple):
    """A figure to reach.

    :ivar counted: Whether it is a count, that does not depend on how fast the machine is.
    """

    what: str
    reached: bool
    found: str
    counted: bool


def goals(document: Mapping[str, Any]) -> list[Goal]:
    """Return the figures to reach, and what was found in *document*."""
    killed, hung, failing = document["figures"]
    posts = document["posts"]
    share = killed["safe_failed"] / max(1, killed["safe"])
    found = f"{killed['safe_failed']} of {killed['safe']}"
    normal = killed["normal"]
    sent, planned = document["requests"], document["planned"]
    return [
        Goal(
            "the load was kept up: 99 % of the planned requests were sent",
            sent >= 0.99 * planned,
            f"{sent} of {planned}",
            False,
        ),
        Goal("one of three killed: at most 0.1 % of GETs fail", share <= 0.001, found, True),
        Goal(
            "and none that is sent a second later",
            killed["safe_failed_later"] == 0,
            str(killed["safe_failed_later"]),
            True,
        ),
        Goal(
            "and the p99 is normal again within 2 s",
            normal is not None and normal <= 2.0,
            _seconds(normal),
            False,
        ),
        Goal(
            "one hangs: it is out after at most 5 timeouts",
            hung["out"] <= 5 * TIMEOUT,
            f"{_seconds(hung['out'])} of {5 * TIMEOUT:g} s, {hung['asked']} requests",
            False,
        ),
        Goal(
            "no GET fails while one hangs or returns 500",
            hung["safe_failed"] + failing["safe_failed"] == 0,
            str(hung["safe_failed"] + failing["safe_failed"]),
            True,
        ),
        Goal("no POST is processed twice", posts["twice"] == 0, str(posts["twice"]), True),
        Goal("no POST is answered but not processed", posts["lost"] == 0, str(posts["lost"]), True),
        Goal(
            "each instance is back",
            all(figures["back"] is not None for figures in document["figures"]),
            ", ".join(_seconds(figures["back"]) for figures in document["figures"]),
            False,
        ),
    ]


def goal_lines(found: Sequence[Goal]) -> str:
    """Return a line for each of the figures to reach."""
    return "\n".join(
        f"{'reached' if goal.reached else 'MISSED':>8}  {goal.what}: {goal.found}" for goal in found
    )


def timeline(lines: Sequence[Slice], troubles: Sequence[Trouble]) -> str:
    """Return a line for each slice of time: which instance answered how many, and what happened."""
    events = [(each.began, f"{each.instance} {_BEGAN[each.what]}") for each in troubles]
    events += [(each.ended, f"{each.instance} {_ENDED[each.what]}") for each in troubles]
    names = sorted(lines[0].answers) if lines else []
    rows = [["seconds", *names, "errors", "p99 ms", "what happens"]]
    for number, line in enumerate(lines):
        end = lines[number + 1].at if number + 1 < len(lines) else float("inf")
        happens = "; ".join(f"{what}" for at, what in sorted(events) if line.at <= at < end)
        answers = [str(line.answers[name]) for name in names]
        rows.append([f"{line.at:.1f}", *answers, str(line.errors), f"{line.p99:.1f}", happens])
    return aligned(rows, left=(len(rows[0]) - 1,))


def figure_table(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the figures, one column for each gateway."""
    rows = [["", *(document["title"] for document in documents)]]
    for number, what in enumerate(("killed", "hung", "failing")):
        figures = [document["figures"][number] for document in documents]
        name = figures[0]["instance"]
        rows += [
            [f"{name} {_BEGAN[what]}: GETs that failed", *map(_failed, figures)],
            ["  POSTs that failed", *(str(each["posts_failed"]) for each in figures)],
        ]
        if what != "killed":
            rows.append(
                [
                    "  requests sent to it until out, in total",
                    *(f"{each['asked_at_first']}, {each['asked']}" for each in figures),
                ]
            )
        rows += [
            ["  seconds until it is out", *(_number(each["out"]) for each in figures)],
            [
                "  seconds until the p99 is normal",
                *(
                    "never" if each["normal"] is None else _number(each["normal"])
                    for each in figures
                ),
            ],
            [
                "  p99 ms before, during, after",
                *(
                    ", ".join(_whole(each[f"p99_{when}"]) for when in ("before", "during", "after"))
                    for each in figures
                ),
            ],
            [
                f"  seconds until it is back after it {_ENDED[what]}",
                *("never" if each["back"] is None else _number(each["back"]) for each in figures),
            ],
        ]
    rows += [
        ["POSTs processed twice", *(str(document["posts"]["twice"]) for document in documents)],
        [
            "POSTs answered but not processed",
            *(str(document["posts"]["lost"]) for document in documents),
        ],
    ]
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return *rows* as lines, the first underlined; the columns *left* to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _failed(figures: Mapping[str, Any]) -> str:
    return f"{figures['safe_failed']} of {figures['safe']}"


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _number(value: float) -> str:
    return f"{value:.1f}"


if __name__ == "__main__":
    print(figure_table([json.loads(Path(name).read_text()) for name in sys.argv[1:]]))
