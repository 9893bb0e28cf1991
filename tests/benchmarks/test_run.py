"""The benchmarks run; how fast anything is, is theirs to tell and not a test's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import decisions, table
from benchmarks.bout import Bout
from benchmarks.contenders import CONTENDERS
from benchmarks.picture import Bar, draw
from benchmarks.targets import TARGETS, reached
from wsgigate.store.lmdb import LmdbStore

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
    told = [line.rsplit(None, 1)[0] for line in done.stdout.splitlines()[2:]]
    assert told[0] == "Guard"
    assert {"Logger", "Limiter", "Authenticator", "full stack"} <= set(told)


FOUND = {
    contender.name: Bout(100.0 + 50 * number, 5000.0, 1.0, 2.0, 0, 30.0)
    for number, contender in enumerate(CONTENDERS)
}


COSTS = {"full stack": 35.0, "Limiter": 8.01}


def test_names_and_titles_of_contenders_are_unique():
    assert len({each.name for each in CONTENDERS}) == len(CONTENDERS)
    assert len({each.title for each in CONTENDERS}) == len(CONTENDERS)


def test_a_row_is_a_control_exactly_if_nothing_of_wsgigate_serves_in_it():
    ours = {each.title for each in CONTENDERS if not each.control}
    assert ours == {
        each.title for each in CONTENDERS if each.title.startswith(("wsgigate ", "GateWorker,"))
    }


def test_every_figure_to_reach_is_reported_with_what_was_reached():
    lines = table.target_table(reached(FOUND, COSTS)).splitlines()
    assert len(lines) == 2 + len(TARGETS)
    assert [line.split()[-1] for line in lines if line.startswith("µs, ")] == ["yes", "no"]


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ({"gunicorn": 33.0, "gthread": 100.0}, (0.33, True)),
        ({"gunicorn": 34.0, "gthread": 100.0}, (0.34, False)),
        ({"gunicorn-full": 100.0, "gthread": 100.0}, (1.0, True)),
        ({"gunicorn-full": 20.0, "naive": 100.0}, (5.0, True)),
        ({"gunicorn-full": 25.0, "naive": 100.0}, (4.0, False)),
        ({"gunicorn-full": 100.0, "granian-full": 160.0, "envoy": 80.0}, (0.8, True)),
        ({"gunicorn-full": 160.0, "granian-full": 100.0, "envoy": 80.0}, (0.8, True)),
        ({"granian-full": 160.0, "envoy": 80.0}, (0.5, False)),
        ({"gunicorn-bare": 100.0, "nginx": 20.0}, (0.2, True)),
    ],
)
def test_a_ratio_is_of_processor_time_and_of_the_better_server(cpu, expected):
    found = {name: FOUND["nginx"]._replace(cpu=time) for name, time in cpu.items()}
    [figure] = [
        each
        for each in reached(found, {})
        if each.reached is not None and not each.what.startswith("p99")
    ]
    assert (figure.reached, figure.met) == (pytest.approx(expected[0]), expected[1])


def test_the_99th_percentile_is_compared_with_the_median_of_the_same_server():
    found = {"granian-full": FOUND["nginx"]._replace(p50=2.0, p99=6.0)}
    [figure] = [each for each in reached(found, {}) if each.reached is not None]
    assert (figure.wanted, figure.reached, figure.met) == ("at most 2.5", 3.0, False)


def test_a_figure_to_reach_that_lacks_one_side_is_reported_as_not_measured():
    assert table.target_table(reached({"nginx": FOUND["nginx"]}, {})) == ""
    lines = table.target_table(reached({}, {"Limiter": 7.0})).splitlines()[2:]
    assert sum(line.endswith("not measured") for line in lines) == len(TARGETS) - 1


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


def test_the_processes_of_a_race_start_together_and_their_decisions_are_added_up(tmp_path):
    def make(quota):
        store, passed = LmdbStore(tmp_path / "store"), iter(range(100))
        store.update("ready", lambda old, now: (b"%d" % (int(old or 0) + 1), 60.0, None))

        def decide():
            assert store.get("ready")[0] == b"3"
            return next(passed) < quota // 3

        return decide

    race = decisions.race(make, 3, 20)
    assert (race.decisions, race.quota, race.allowed) == (60, 30, 30)
    assert race.rate > 0


def test_a_process_that_fails_fails_the_race(capfd):
    def make(quota):
        raise ValueError("no such store")

    with pytest.raises(RuntimeError, match="2 of 2 processes failed"):
        decisions.race(make, 2, 10)
    assert "no such store" in capfd.readouterr().err


def test_decisions_are_told_of_every_store_at_hand_and_exact(tmp_path):
    options = ["--decisions=20", "--rounds=1", "--requests=2", "--json", tmp_path / "all.json"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.decisions", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    document = json.loads((tmp_path / "all.json").read_text())
    found, limiters = document["decisions"], document["limiters"]
    assert found["wsgigate token-bucket, memory"].keys() == {"1"}
    assert found["wsgigate fixed-window, lmdb"].keys() == {"1", "2", "4", "8"}
    eight = found["wsgigate token-bucket, lmdb"]["8"]
    assert (eight["decisions"], eight["allowed"], eight["quota"]) == (160, 80, 80)
    assert {"Flask, wsgigate, lmdb", "Django, wsgigate, memory"} <= limiters.keys()
    told = done.stdout.splitlines()
    assert {*found, *limiters} == {
        title for title in (*found, *limiters) if any(line.startswith(title) for line in told)
    }
    skipped = sum(line.startswith("skipped: ") for line in told)
    assert skipped + len(found) + len(limiters) == len(decisions.CONTENDERS) + 10


def test_a_decision_in_redis_is_compared_with_one_that_tells_as_much():
    def one(seconds, cpu):
        return {1: decisions.Race(100, 50, 50, seconds, cpu), 2: decisions.Race(9, 9, 9, 9.0, 9.0)}

    found = {
        "wsgigate fixed-window, redis": one(1.0, 0.5),
        "wsgigate sliding-window, redis": one(2.0, 0.5),
        "limits fixed window, redis": one(1.0, 0.5),
        "limits fixed window, hit and statistics, redis": one(4.0, 1.0),
        "limits moving window, hit and statistics, memory": one(9.0, 9.0),
    }
    [told] = [line for line in decisions.tables(found, {}).splitlines() if "wanted" in line]
    assert told == (
        "(in Redis, a fixed-window is 2.0 times as cheap as limits with statistics by CPU,"
        " 4.0 times by the clock; wanted: 1.8)"
    )
    found["limits moving window, hit and statistics, redis"] = one(3.0, 0.6)
    assert " 1.2 times as cheap " in decisions.tables(found, {}).splitlines()[-1]


def test_a_count_that_is_not_exact_is_told():
    wrong = {"other": {1: decisions.Race(100, 60, 50, 1.0, 1.0)}}
    assert decisions.tables(wrong, {}).splitlines()[2].endswith("60 of 50")
