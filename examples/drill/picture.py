"""The picture: requests per instance over time, and what happened when. One panel per gateway.

Written as SVG by hand, readable on a light page and on a dark one.

    python picture.py ONE.json OTHER.json > drill.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

__all__ = ["draw"]

_LEFT, _PLOT, _RIGHT = 60, 800, 30
_TOP, _PANEL, _GAP, _BOTTOM = 94, 130, 50, 40
_WIDTH = _LEFT + _PLOT + _RIGHT

_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 15px; }
.name { font-weight: 600; }
.quiet { fill: #59636e; }
.axis { stroke: #d1d9e0; }
.event { stroke: #59636e; stroke-dasharray: 3 3; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.a { stroke: #0969da; fill: #0969da; }
.b { stroke: #9a6700; fill: #9a6700; }
.c { stroke: #1a7f37; fill: #1a7f37; }
.errors { fill: #cf222e; }
text.a, text.b, text.c { stroke: none; font-weight: 600; }
path.a, path.b, path.c { fill: none; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .quiet { fill: #9198a1; }
  .axis { stroke: #3d444d; }
  .event { stroke: #9198a1; }
  .a { stroke: #4493f8; fill: #4493f8; }
  .b { stroke: #d29922; fill: #d29922; }
  .c { stroke: #3fb950; fill: #3fb950; }
  .errors { fill: #f85149; }
}
"""

_BEGAN = {"killed": "{} is killed", "hung": "{} hangs", "failing": "{} returns 500"}
_ENDED = {"killed": "{} is started", "hung": "{} resumes", "failing": "{} recovers"}


def draw(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the picture of the *documents* of drills."""
    height = _TOP + len(documents) * (_PANEL + _GAP) - _GAP + _BOTTOM
    title = "One of three instances is killed, hangs, returns 500"
    subtitle = "Responses per second of each instance; failed requests in red"
    said = f"{title}. {subtitle}: " + "; ".join(_said(document) for document in documents)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
        f' width="{_WIDTH}" height="{height}" role="img" aria-label="{_quoted(said)}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="0" y="18">{escape(title)}</text>',
        f'<text class="quiet" x="0" y="38">{escape(subtitle)}</text>',
    ]
    for number, document in enumerate(documents):
        lines += _panel(
            document, _TOP + number * (_PANEL + _GAP), last=number == len(documents) - 1
        )
    return "\n".join([*lines, "</svg>", ""])


def _panel(document: Mapping[str, Any], top: float, *, last: bool) -> list[str]:
    slices = document["slices"]
    step = slices[1]["at"] - slices[0]["at"]
    end = slices[-1]["at"] + step
    most = max(max(each["answers"].values()) for each in slices) / step or 1.0
    floor = top + _PANEL

    def across(at: float) -> float:
        return _LEFT + at / end * _PLOT

    def up(rate: float) -> float:
        return floor - rate / most * _PANEL

    lines = [
        f'<text class="name" x="0" y="{top - 22}">{escape(document["title"])}</text>',
        f'<line class="axis" x1="{_LEFT}" x2="{_LEFT + _PLOT}" y1="{floor}" y2="{floor}"/>',
        f'<text class="quiet" x="{_LEFT - 8}" y="{floor + 4}" text-anchor="end">0</text>',
        f'<text class="quiet" x="{_LEFT - 8}" y="{top + 4}" text-anchor="end">{most:.0f}</text>',
    ]
    for trouble in document["troubles"]:
        for key, words in (("began", _BEGAN), ("ended", _ENDED)):
            x = f"{across(trouble[key]):.1f}"
            text = words[trouble["what"]].format(trouble["instance"])
            lines += [
                f'<line class="event" x1="{x}" x2="{x}" y1="{top - 4}" y2="{floor}"/>',
                f'<text class="quiet" x="{x}" y="{top - 8}">{escape(text)}</text>',
            ]
    for each in slices:
        if each["errors"]:
            rate = min(each["errors"] / step, most)
            lines.append(
                f'<rect class="errors" x="{across(each["at"]):.1f}" y="{up(rate):.1f}"'
                f' width="{max(2.0, step / end * _PLOT - 1):.1f}"'
                f' height="{max(2.0, floor - up(rate)):.1f}"/>'
            )
    for place, name in enumerate(sorted(slices[0]["answers"])):
        points = [
            f"{across(each['at'] + step / 2):.1f},{up(each['answers'][name] / step):.1f}"
            for each in slices
        ]
        lines += [
            f'<path class="line {name}" d="M{" L".join(points)}"/>',
            f'<text class="{name}" x="{_LEFT + _PLOT + 10}" y="{top + 12 + 18 * place}">'
            f"{escape(name)}</text>",
        ]
    if last:
        for second in range(0, int(end) + 1, 10):
            lines.append(
                f'<text class="quiet" x="{across(second):.1f}" y="{floor + 18}"'
                f' text-anchor="middle">{second} s</text>'
            )
    return lines


def _said(document: Mapping[str, Any]) -> str:
    failed = sum(each["errors"] for each in document["slices"])
    return f"{document['title']}: {failed} of {document['requests']} requests failed"


def _quoted(text: str) -> str:
    return escape(text, {'"': "&quot;"})


if __name__ == "__main__":
    sys.stdout.write(draw([json.loads(Path(name).read_text()) for name in sys.argv[1:]]))
