"""The drill of the examples, a short one: what clients see while instances fail, in counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.acceptance.test_examples import EXAMPLES, free_ports, session_of

WORKERS = 2


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the drill tells; all the tests of this module read the same one."""
    folder = tmp_path_factory.mktemp("drill")
    command = [sys.executable, str(EXAMPLES / "drill" / "drill.py"), "--quick"]
    command += ["--port-base", str(free_ports(4)), "--json", "told.json", "--svg", "drill.svg"]
    drill = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with drill:
        said, _ = drill.communicate(timeout=120)
    document: dict[str, Any] = {
        "code": drill.returncode,
        "said": said,
        "left": session_of(drill.pid),
    }
    assert drill.returncode in (0, 1), said
    document["picture"] = (folder / "drill.svg").read_text()
    return document | json.loads((folder / "told.json").read_text())


@pytest.fixture
def killed(told: dict[str, Any]) -> Any:
    return told["figures"][0]


@pytest.fixture
def hung(told: dict[str, Any]) -> Any:
    return told["figures"][1]


@pytest.fixture
def failing(told: dict[str, Any]) -> Any:
    return told["figures"][2]


def test_it_says_that_all_counts_are_as_they_should_be(told: dict[str, Any]) -> None:
    assert told["code"] == 0, told["said"]


def test_it_leaves_no_process_behind(told: dict[str, Any]) -> None:
    assert told["left"] == []


def test_there_was_load(killed: Any, told: dict[str, Any]) -> None:
    assert killed["safe"] > 100
    assert told["posts"]["sent"] > 200


def test_hardly_a_get_fails_when_one_of_three_instances_is_killed(killed: Any) -> None:
    assert killed["safe_failed"] <= killed["safe"] / 1000


def test_no_get_fails_that_is_sent_a_second_later(killed: Any) -> None:
    assert killed["safe_failed_later"] == 0


def test_no_get_fails_when_an_instance_hangs_or_answers_500(hung: Any, failing: Any) -> None:
    assert (hung["safe_failed"], failing["safe_failed"]) == (0, 0)


def test_no_post_is_processed_twice_nor_lost(told: dict[str, Any]) -> None:
    assert (told["posts"]["twice"], told["posts"]["lost"]) == (0, 0)


def test_an_instance_that_hangs_is_out(hung: Any) -> None:
    assert hung["asked"] > 0, "a hung instance can be told by nothing but its requests"
    assert hung["asked_last"] == 0


def test_an_instance_that_fails_is_out_although_its_checks_pass(failing: Any) -> None:
    # Five in a row for each worker, and those that were under way with it then.
    assert 5 <= failing["asked"] <= WORKERS * (5 + 10)
    assert failing["asked_last"] == 0


def test_each_instance_comes_back(told: dict[str, Any]) -> None:
    assert [each["back"] is not None for each in told["figures"]] == [True] * 3


def test_the_picture_is_drawn(told: dict[str, Any]) -> None:
    assert "<svg" in told["picture"]
