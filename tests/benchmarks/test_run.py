"""The benchmarks run; how fast anything is, is theirs to tell and not a test's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import table
from benchmarks.bout import Bout
from benchmarks.contenders import CONTENDERS, TARGETS
from benchmarks.picture import Bar, draw

ROOT = Path(__file__).parents[2]


def test_a_quick_run_tells_of_every_middleware():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    told = [line.rsplit(None, 1)[0] for line in done.stdout.splitlines()[2:-1]]
    assert told[0] == "Guard"
    assert {"Logger", "Limiter", "Authenticator", "full stack"} <= set(told)


FOUND = {
    contender.name: Bout(100.0 + 50 * number, 5000.0, 1.0, 2.0, 0, 30.0)
    for number, contender in enumerate(CONTENDERS)
}


def test_every_target_is_told_by_processor_time_and_by_the_clock():
    lines = table.target_table(FOUND).splitlines()
    assert len(lines) == 2 + len(TARGETS)
    assert lines[2].split()[-3:] == ["1.00", "0.50", "1.00"]


def test_a_target_that_lacks_one_side_is_left_out():
    assert table.target_table({"nginx": FOUND["nginx"]}) == ""


def test_medians_are_of_each_figure_and_errors_of_all_rounds():
    rounds = [Bout(float(n), 10.0 * n, n, n, 1, 5.0 * n) for n in (1, 2, 9)]
    assert table.median(rounds) == Bout(2.0, 20.0, 2, 2, 3, 45.0)


@pytest.mark.parametrize("bars", [[], [Bar("a < b & c", 1.0, '"note"', ours=True)]])
def test_the_picture_is_well_formed(bars):
    picture = ElementTree.fromstring(draw("Title", "and more", bars))
    assert picture.attrib["role"] == "img"


def test_the_picture_has_a_bar_for_each():
    picture = ElementTree.fromstring(draw("Title", "", table.bars(FOUND)))
    assert len(picture.findall("{http://www.w3.org/2000/svg}rect")) == len(CONTENDERS)
