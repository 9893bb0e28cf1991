"""The drill of the examples, a short one: what clients see while instances fail, in counts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from tests.acceptance.test_examples import EXAMPLES, running, session_of
from tests.support.ports import free_ports, is_free

MOST = 2 * (5 + 10)
"""Five in a row for each of two workers, and those that are under way with the instance then."""


def drill(port: int, *more: str) -> list[str]:
    return [str(EXAMPLES / "drill" / "drill.py"), "--quick", "--port-base", str(port), *more]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the drill tells; all the tests of this module read the same one."""
    folder = tmp_path_factory.mktemp("drill")
    process = subprocess.Popen(
        [sys.executable, *drill(free_ports(4), "--json", "told.json", "--svg", "drill.svg")],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        said, _ = process.communicate(timeout=120)
    document: dict[str, Any] = {
        "code": process.returncode,
        "said": said,
        "left": session_of(process.pid),
    }
    assert process.returncode in (0, 1), said
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
    assert killed["safe"] > 50
    assert told["posts"]["sent"] > 100


def test_hardly_a_get_fails_when_one_of_three_instances_is_killed(killed: Any) -> None:
    assert killed["safe_failed"] <= killed["safe"] / 1000


def test_no_get_fails_that_is_sent_a_second_later(killed: Any) -> None:
    assert killed["safe_failed_later"] == 0


def test_no_get_fails_when_an_instance_hangs_or_answers_500(hung: Any, failing: Any) -> None:
    assert (hung["safe_failed"], failing["safe_failed"]) == (0, 0)


def test_no_post_is_processed_twice_nor_lost(told: dict[str, Any]) -> None:
    assert (told["posts"]["twice"], told["posts"]["lost"]) == (0, 0)


def test_an_instance_that_hangs_is_out(hung: Any) -> None:
    assert 0 < hung["asked"] <= MOST
    assert hung["asked_last"] == 0


def test_an_instance_that_fails_is_out_although_its_checks_pass(failing: Any) -> None:
    assert 5 <= failing["asked"] <= MOST  # it is tried again when its time is over


def test_each_instance_comes_back(told: dict[str, Any]) -> None:
    assert [each["back"] is not None for each in told["figures"]] == [True] * 3


def test_the_picture_is_drawn(told: dict[str, Any]) -> None:
    assert "<svg" in told["picture"]


def test_a_signal_ends_it_and_leaves_no_process_behind() -> None:
    port = free_ports(4)
    with running(drill(port), EXAMPLES.parent) as program:
        program.wait_for(lambda: not is_free(port))  # the gateway is the last to be started
        os.killpg(program.popen.pid, signal.SIGTERM)
        assert program.exit_code() == 130, program.told()
        assert "Traceback" not in program.told()


def test_a_taken_port_is_one_clear_line() -> None:
    port = free_ports(4)
    with (
        socket.create_server(("127.0.0.1", port + 2)),
        running(drill(port), EXAMPLES.parent) as program,
    ):
        assert program.exit_code() == 2
        assert f"drill: port {port + 2} cannot be used" in program.told().splitlines()[-1]


def test_a_gateway_that_does_not_start_is_reported_with_its_output() -> None:
    command = f"{sys.executable} -c 'raise SystemExit(\"no such key\")'"
    with running(drill(free_ports(4), "--gateway", command), EXAMPLES.parent) as program:
        assert program.exit_code() == 2
        assert "the gateway ended, with the output:\nno such key" in program.told()
        assert "Traceback" not in program.told()
