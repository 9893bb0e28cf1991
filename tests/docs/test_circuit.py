"""The picture of a circuit's states is drawn from the table, and is the one of today."""

from __future__ import annotations

import runpy
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.docs.pages import FOLDER
from wsgigate.rules.circuit import TRANSITIONS, State

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "generate_circuit.py"))


def test_the_picture_is_current(script: dict[str, Any]) -> None:
    assert (FOLDER / "circuit.svg").read_text(encoding="utf-8") == script["picture"](), (
        "run docs/generate_circuit.py"
    )


def test_every_state_and_every_step_is_in_it(script: dict[str, Any]) -> None:
    root = ElementTree.fromstring(script["picture"]())
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {state.value for state in State} <= set(words)
    labels = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "label"]
    assert sorted(labels) == sorted(event.value for _, event in TRANSITIONS)  # type: ignore[type-var]
    arrows = [path for path in root.iter(f"{SVG}path") if path.get("style") is None]
    assert len(arrows) == len({(before, after) for (before, _), after in TRANSITIONS.items()})
