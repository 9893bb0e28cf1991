"""Generate ``circuit.svg``, the diagram of a circuit's states, from the transition table.

Run it after a change of :data:`wsgigate.rules.circuit.TRANSITIONS`::

    python docs/generate_circuit.py
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from math import hypot
from pathlib import Path

from wsgigate.rules.circuit import TRANSITIONS, Event, State

FILE = Path(__file__).parent / "circuit.svg"
WIDTH, HEIGHT = 720, 450
PLACES = {State.CLOSED: (130, 140), State.OPEN: (590, 140), State.HALF_OPEN: (360, 350)}
MEANING = {
    State.CLOSED: "calls pass",
    State.OPEN: "calls are rejected",
    State.HALF_OPEN: "a few calls probe",
}
BEND = 34  # the distance of an arrow from the straight line
BOX = (76, 30)  # half of a state's width and height
STYLE = """\
text { font: 13px sans-serif; text-anchor: middle; fill: #222 }
.state { font-weight: bold; font-size: 15px }
rect { fill: #eef3fb; stroke: #36577f; stroke-width: 1.5; rx: 8 }
path { fill: none; stroke: #555; stroke-width: 1.3; marker-end: url(#head) }
.label { paint-order: stroke; stroke: #fff; stroke-width: 4 }
"""


def picture() -> str:
    """Return the text of the picture."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            'aria-label="The states of a circuit">',
            f"<style>{STYLE}</style>",
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" '
            'markerHeight="8" orient="auto"><path d="M0,0 L10,5 L0,10 z" '
            'style="fill:#555;stroke:none;marker-end:none"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{HEIGHT}" style="fill:#fff;stroke:none;rx:0"/>',
            *_arrows(),
            *_states(),
            "</svg>",
            "",
        ]
    )


def _states() -> Iterator[str]:
    for state, (x, y) in PLACES.items():
        yield (
            f'<rect x="{x - BOX[0]}" y="{y - BOX[1]}" width="{2 * BOX[0]}" height="{2 * BOX[1]}"/>'
        )
        yield f'<text class="state" x="{x}" y="{y - 3}">{state.value}</text>'
        yield f'<text x="{x}" y="{y + 17}">{MEANING[state]}</text>'


def _arrows() -> Iterator[str]:
    """Yield an arrow for each pair of states that the table connects, with all its events."""

    def ends(step: tuple[tuple[State, Event], State]) -> tuple[str, str]:
        (before, _), after = step
        return before.value, after.value

    for (before, after), steps in groupby(sorted(TRANSITIONS.items(), key=ends), key=ends):
        words = [event.value for (_, event), _ in steps]
        yield from _arrow(PLACES[State(before)], PLACES[State(after)], words)


def _arrow(start: tuple[int, int], end: tuple[int, int], words: list[str]) -> Iterator[str]:
    if start == end:
        (x, y), below = start, start[1] > HEIGHT / 2
        edge, far = (y + BOX[1], y + 85) if below else (y - BOX[1], y - 85)
        yield f'<path d="M{x - 25},{edge} C{x - 50},{far} {x + 50},{far} {x + 25},{edge}"/>'
        yield from _label(x, y + 88 if below else y - 78 - 16 * (len(words) - 1), words)
        return
    length = hypot(end[0] - start[0], end[1] - start[1])
    across = ((end[1] - start[1]) / length, -(end[0] - start[0]) / length)
    middle = [(start[n] + end[n]) / 2 + across[n] * BEND for n in (0, 1)]
    begin, stop = (_on_edge(place, middle) for place in (start, end))
    yield (
        f'<path d="M{begin[0]:.0f},{begin[1]:.0f} Q{middle[0]:.0f},{middle[1]:.0f} '
        f'{stop[0]:.0f},{stop[1]:.0f}"/>'
    )
    yield from _label(middle[0], middle[1] + (0 if across[1] < 0 else 8), words)


def _on_edge(place: tuple[int, int], to: list[float]) -> tuple[float, float]:
    """Return where the line from the middle of a state's box leaves it."""
    away = (to[0] - place[0], to[1] - place[1])
    share = min(half / abs(step) for half, step in zip(BOX, away, strict=True) if step)
    return place[0] + away[0] * share, place[1] + away[1] * share


def _label(x: float, y: float, words: list[str]) -> Iterator[str]:
    for line, text in enumerate(words):
        yield f'<text class="label" x="{x:.0f}" y="{y + 16 * line:.0f}">{text}</text>'


if __name__ == "__main__":
    FILE.write_text(picture(), encoding="utf-8")
