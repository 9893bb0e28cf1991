"""The picture: bars, written as SVG by hand, readable on a light page and on a dark one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

__all__ = ["Bar", "draw"]

_ROW, _BAR, _LABEL, _PLOT, _TOP = 30, 18, 350, 380, 58
_WIDTH = _LABEL + _PLOT + 250

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 15px; }
.quiet { fill: #59636e; }
.other { fill: #8c959f; }
.ours { fill: #0969da; }
.axis { stroke: #d1d9e0; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .quiet { fill: #9198a1; }
  .other { fill: #656c76; }
  .ours { fill: #4493f8; }
  .axis { stroke: #3d444d; }
}
"""


class Bar(NamedTuple):
    """One bar: what it is called, how long it is, what is written after it, and if it is ours."""

    label: str
    value: float
    note: str
    ours: bool = False


def draw(title: str, subtitle: str, bars: Sequence[Bar]) -> str:
    """Return an SVG picture of *bars*, one below the other."""
    height = _TOP + _ROW * len(bars) + 10
    longest = max((bar.value for bar in bars), default=0.0) or 1.0
    said = f"{title}. " + "; ".join(f"{bar.label}: {_number(bar.value)}" for bar in bars)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
        f' width="{_WIDTH}" height="{height}" role="img" aria-label="{_quoted(said)}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="0" y="18">{escape(title)}</text>',
        f'<text class="quiet" x="0" y="38">{escape(subtitle)}</text>',
        f'<line class="axis" x1="{_LABEL}" x2="{_LABEL}" y1="{_TOP - 6}" y2="{height - 8}"/>',
    ]
    for number, bar in enumerate(bars):
        top = _TOP + number * _ROW
        middle = top + _BAR / 2 + 4.5
        length = max(1.0, bar.value / longest * _PLOT)
        kind = "ours" if bar.ours else "other"
        lines += [
            f'<text x="{_LABEL - 10}" y="{middle}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect class="{kind}" x="{_LABEL}" y="{top}" width="{length:.1f}" height="{_BAR}"'
            ' rx="2"/>',
            f'<text x="{_LABEL + length + 8:.1f}" y="{middle}">{_number(bar.value)}'
            f'<tspan class="quiet" dx="8">{escape(bar.note)}</tspan></text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _quoted(text: str) -> str:
    return escape(text, {'"': "&quot;"})
