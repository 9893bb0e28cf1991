"""What the drill makes of what clients saw and what instances wrote: figures, lines, a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.examples.conftest import SHOP, importing

DRILL = SHOP.parent / "drill"


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    with importing(DRILL) as load:
        yield {name: load(name) for name in ("clients", "figures", "report", "picture", "drill")}


@pytest.fixture
def figures(modules: dict[str, ModuleType]) -> Any:
    return modules["figures"]


@pytest.fixture
def get(modules: dict[str, ModuleType]) -> Any:
    """Make a GET: ``get(due, took=0.01, status=200, instance="a")``."""
    numbers = iter(range(1, 10_000))

    def make(
        due: float, took: float = 0.01, status: int = 200, instance: str = "a", method: str = "GET"
    ) -> Any:
        return modules["clients"].Request(
            str(next(numbers)), method, due, took, status, instance if status == 200 else ""
        )

    return make


@pytest.mark.parametrize(
    ("took", "expected"),
    [
        ([0.001], 1.0),
        ([0.001] * 98 + [0.5], 500.0),
        ([0.001] * 99 + [0.5], 1.0),
        ([0.001] * 198 + [0.5, 0.5], 1.0),
        ([0.001] * 197 + [0.5] * 3, 500.0),
    ],
)
def test_99_percent_take_no_more(
    figures: Any, get: Any, took: list[float], expected: float
) -> None:
    assert figures.p99([get(0.0, each) for each in took]) == expected


def test_of_no_requests_nothing_is_told(figures: Any) -> None:
    assert math.isnan(figures.p99([]))


def test_a_slice_has_what_was_due_in_it(figures: Any, get: Any) -> None:
    requests = [get(0.2), get(0.6, instance="b"), get(0.9, took=3.0, status=504), get(1.0)]
    first, second = figures.slices(requests, ["a", "b"], 2.0, 1.0)
    assert (first.answers, first.errors, first.p99) == ({"a": 1, "b": 1}, 1, 3000.0)
    assert (second.at, second.answers, second.errors) == (1.0, {"a": 1, "b": 0}, 0)


def posted(id: str, status: int = 200) -> tuple[float, str, str, int]:
    return (1.0, "POST", id, status)


@pytest.mark.parametrize(
    ("journals", "twice", "lost"),
    [
        ({"a": [posted("1"), posted("2")], "b": []}, 0, 0),
        ({"a": [posted("1")], "b": [posted("1"), posted("2")]}, 1, 0),
        ({"a": [posted("1", 500)], "b": [posted("1"), posted("2")]}, 1, 0),
        ({"a": [posted("1"), posted("1"), posted("2")], "b": []}, 1, 0),
        ({"a": [posted("1")], "b": [(1.0, "GET", "2", 200)]}, 0, 1),
    ],
    ids=["each once", "by two", "by one that failed and another", "twice by one", "by nobody"],
)
def test_posts_are_processed_once(
    figures: Any, get: Any, journals: dict[str, Any], twice: int, lost: int
) -> None:
    requests = [get(0.0, method="POST"), get(0.1, method="POST"), get(0.2)]
    written = {name: [figures.Entry(*line) for line in lines] for name, lines in journals.items()}
    told = figures.posts(requests, written)
    assert told == {"sent": 2, "failed": 0, "twice": twice, "lost": lost}


def test_a_post_that_failed_is_not_lost(figures: Any, get: Any) -> None:
    assert figures.posts([get(0.0, status=502, method="POST")], {"a": []})["lost"] == 0


def even(get: Any, *, slow: tuple[float, float] = (0.0, 0.0)) -> list[Any]:
    """Return a hundred requests a second for 20 s, those due in *slow* of half a second."""
    times = [number / 100 for number in range(2000)]
    return [get(time, 0.5 if slow[0] <= time < slow[1] else 0.01, instance="b") for time in times]


def test_nothing_comes_of_a_trouble_that_nobody_notices(figures: Any, get: Any) -> None:
    trouble = figures.Trouble("killed", "a", 5.0, 10.0, 20.0)
    told = figures.evaluate(trouble, [*even(get), get(11.0), get(12.5)], {"a": []})
    assert (told["safe"], told["safe_failed"], told["posts_failed"]) == (500, 0, 0)
    assert (told["out"], told["normal"], told["asked"]) == (0.0, 0.0, None)
    assert told["back"] == pytest.approx(1.01)


def test_failures_count_from_the_moment_on_and_late_ones_by_themselves(
    figures: Any, get: Any
) -> None:
    trouble = figures.Trouble("killed", "a", 5.0, 10.0, 20.0)
    failed = [
        get(4.8, 0.1, 502),  # had ended before
        get(4.9, 0.2, 502),  # was under way
        get(5.5, 0.1, 502),
        get(5.6, 0.1, 502, method="POST"),
        get(6.1, 0.1, 0),
        get(9.0, 0.1, 502),
        get(10.1, 0.1, 502),  # is of another time
    ]
    told = figures.evaluate(trouble, [*even(get), *failed], {"a": []})
    assert (told["safe_failed"], told["safe_failed_later"], told["posts_failed"]) == (4, 2, 1)
    assert told["out"] == pytest.approx(1.1), "then nobody came to harm for two seconds"


@pytest.mark.parametrize(
    ("slow", "normal"), [((5.0, 6.3), 1.3), ((5.0, 9.95), None), ((7.0, 8.0), 0.0)]
)
def test_it_is_normal_again_when_a_whole_second_is(
    figures: Any, get: Any, slow: tuple[float, float], normal: float | None
) -> None:
    trouble = figures.Trouble("killed", "a", 5.0, 10.0, 20.0)
    told = figures.evaluate(trouble, even(get, slow=slow), {"a": []})
    assert told["normal"] == (None if normal is None else pytest.approx(normal))


def test_what_waited_for_one_that_hung_is_what_it_was_given(figures: Any, get: Any) -> None:
    trouble = figures.Trouble("hung", "a", 5.0, 10.0, 20.0)
    answered = get(4.99, 0.02)
    under_way = get(4.99, 0.5, instance="b")
    waited = get(5.4, 0.5, instance="b")
    late = get(9.5, 0.5, instance="b")
    after = get(11.0)
    journal = [(4.99, answered), (4.995, under_way), (10.0, waited), (10.0, late), (11.0, after)]
    entries = [figures.Entry(at, "GET", each.id, 200) for at, each in journal]
    requests = [*even(get), answered, under_way, waited, late, after]
    told = figures.evaluate(trouble, requests, {"a": entries})
    assert (told["asked"], told["asked_at_first"], told["asked_last"]) == (3, 2, 1)
    assert told["out"] == pytest.approx(0.4)


def test_what_one_that_fails_answered_with_500_is_what_it_was_given(figures: Any, get: Any) -> None:
    trouble = figures.Trouble("failing", "a", 5.0, 10.0, 20.0)
    lines = [(4.0, 200), (5.1, 500), (5.2, 500), (9.1, 500), (11.0, 200)]
    entries = [figures.Entry(at, "GET", "0", status) for at, status in lines]
    told = figures.evaluate(trouble, even(get), {"a": entries})
    assert (told["asked"], told["asked_at_first"], told["asked_last"]) == (3, 2, 1)
    assert (told["out"], told["back"]) == (pytest.approx(0.2), None)


@pytest.fixture
def told(modules: dict[str, ModuleType], get: Any) -> dict[str, Any]:
    """A document as the drill writes it, read again."""
    drill = modules["drill"]
    troubles = drill.WHOLE.troubles()
    pace = drill.WHOLE._replace(rate=20)
    requests = [get(number / 20, instance="abc"[number % 3]) for number in range(20 * 55)]
    made = drill.document(
        "a < b & c", pace, drill.Drilled(requests, {name: [] for name in "abc"}, troubles)
    )
    return json.loads(json.dumps(made))


def changed(told: dict[str, Any], place: int, **figures: Any) -> dict[str, Any]:
    rows = [dict(each) for each in told["figures"]]
    rows[place] |= figures
    return {**told, "figures": rows}


def test_all_is_reached_when_nobody_notices(modules: dict[str, ModuleType], told: Any) -> None:
    assert all(goal.reached for goal in modules["report"].goals(told))


@pytest.mark.parametrize(
    ("place", "figures", "missed"),
    [
        (0, {"safe": 1000, "safe_failed": 1}, ""),
        (0, {"safe": 1000, "safe_failed": 2}, "at most 0.1 %"),
        (0, {"safe_failed_later": 1}, "a second later"),
        (0, {"normal": 2.1}, "p99"),
        (0, {"normal": None}, "p99"),
        (1, {"out": 2.5}, ""),
        (1, {"out": 2.6}, "5 timeouts"),
        (1, {"safe_failed": 1}, "hangs or returns 500"),
        (2, {"safe_failed": 1}, "hangs or returns 500"),
        (2, {"back": None}, "is back"),
    ],
)
def test_a_figure_that_is_missed_is_told(
    modules: dict[str, ModuleType], told: Any, place: int, figures: dict[str, Any], missed: str
) -> None:
    found = modules["report"].goals(changed(told, place, **figures))
    lines = [line for line in modules["report"].goal_lines(found).splitlines() if "MISSED" in line]
    assert len(lines) == bool(missed)
    assert missed in "".join(lines)


def test_a_load_that_could_not_be_kept_up_is_told(
    modules: dict[str, ModuleType], told: Any
) -> None:
    told["requests"] -= 12
    [missed] = [goal for goal in modules["report"].goals(told) if not goal.reached]
    assert (missed.found, missed.counted) == ("1088 of 1100", False)


@pytest.mark.parametrize("what", ["twice", "lost"])
def test_a_post_done_twice_or_never_is_told(
    modules: dict[str, ModuleType], told: Any, what: str
) -> None:
    told["posts"][what] = 1
    [missed] = [goal for goal in modules["report"].goals(told) if not goal.reached]
    assert (missed.found, missed.counted) == ("1", True)


def test_a_line_of_the_timeline_says_what_happens(modules: dict[str, ModuleType], get: Any) -> None:
    pace = modules["drill"].WHOLE
    lines = modules["figures"].slices([get(5.5)], "abc", 10.0, 1.0)
    told = modules["report"].timeline(lines, pace.troubles()).splitlines()
    assert told[2 + 5].split(None, 6) == ["5.0", "1", "0", "0", "0", "10.0", "a is killed"]
    assert len(told) == 2 + 10


def test_the_table_has_a_column_for_each(modules: dict[str, ModuleType], told: Any) -> None:
    table = modules["report"].figure_table([told, {**told, "title": "other"}]).splitlines()
    assert table[0].split("  ")[-2:] == ["a < b & c", "    other"] or table[0].endswith("other")
    assert table[2].startswith("a is killed: GETs that failed")
    assert table[-1].split()[-2:] == ["0", "0"]


def test_the_picture_has_a_panel_for_each(modules: dict[str, ModuleType], told: Any) -> None:
    told["slices"][10]["errors"] = 3
    picture = ElementTree.fromstring(modules["picture"].draw([told, told]))
    name = "{http://www.w3.org/2000/svg}"
    assert picture.attrib["role"] == "img"
    assert len(picture.findall(f"{name}path")) == 2 * 3
    assert len(picture.findall(f"{name}rect")) == 2
    events = [line for line in picture.findall(f"{name}line") if line.attrib["class"] == "event"]
    assert len(events) == 2 * 6
