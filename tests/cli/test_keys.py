"""The command keys and the gateway of the same file share the API keys."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

import wsgigate
from wsgigate.cli import main
from wsgigate.gateway import Gateway

STORE = '[store]\nurl = "lmdb:data"\n'
FILE = STORE + '[api_keys]\nfile = "keys.json"\nprefix = "acme"\n'
MEMORY = FILE.replace("lmdb:data", "memory:")
ROUTE = """
[[routes]]
path = "/demo"
app = "wsgiref.simple_server:demo_app"
[[routes.middleware]]
use = "api-key"
"""


@pytest.fixture(params=[STORE, FILE, MEMORY], ids=["lmdb", "file", "file-without-store"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / "gateway.toml"
    path.write_text(request.param + ROUTE)
    return str(path)


def ask(gateway: Gateway, key: str) -> int:
    return Client(gateway).get("/demo", headers={"X-API-Key": key}).status_code


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["keys", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_gateway_accepts_a_created_key_until_it_is_revoked(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(
        capsys, "create", file, "--owner", "acme", "--scope", "a", "--scope", "b",
        "--plan", "gold", "--name", "nightly", "--expires", "90d",
    )  # fmt: skip
    assert (made["scopes"], made["plan"], made["name"]) == (["a", "b"], "gold", "nightly")
    gateway = wsgigate.load(file)
    assert ask(gateway, made["key"]) == 200
    rotated = run(capsys, "rotate", file, made["id"])
    gateway.close()
    gateway = wsgigate.load(file)
    assert [ask(gateway, made["key"]), ask(gateway, rotated["key"])] == [200, 200]
    run(capsys, "revoke", file, made["id"])
    gateway.close()
    gateway = wsgigate.load(file)
    assert [ask(gateway, made["key"]), ask(gateway, rotated["key"])] == [401, 401]
    gateway.close()
    [listed] = run(capsys, "list", file, "--owner", "acme")
    assert listed["revoked"]
    assert run(capsys, "list", file, "--owner", "umbrella") == []


def test_the_text_for_people_has_the_key_once(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "create", file, "--owner", "acme", "--expires", "1d"]) == 0
    created = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert main(["keys", "rotate", file, created["id"], "--overlap", "2h"]) == 0
    assert "old key valid until: " in capsys.readouterr().out
    assert main(["keys", "list", file]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["ID", "OWNER", "PLAN", "SCOPES", "STATE", "LAST", "USED", "NAME"]
    assert line.split()[:2] == [created["id"], "acme"]
    assert f"valid until {created['expires']}" in line
    assert created["key"] not in line


def test_new_keys_have_the_prefix_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(MEMORY + ROUTE)
    assert run(capsys, "create", str(path), "--owner", "acme")["key"].startswith("acme_")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "FILE", "--owner", ""], "owner: expected a text of one line"),
        (["create", "FILE", "--owner", "a", "--plan", "b c"], "plan: expected up to 64"),
        (["create", "FILE", "--owner", "a", "--scope", "b c"], "scopes: expected names"),
        (["create", "FILE", "--owner", "a", "--expires", "soon"], "--expires: expected a duration"),
        (["create", "FILE", "--owner", "a", "--expires", "9999d"], "expires: more than 0"),
        (["rotate", "FILE", "nobody"], "id: there is no key with this id"),
        (["rotate", "FILE", "nobody", "--overlap", "x"], "--overlap: expected a duration"),
        (["revoke", "FILE", "nobody"], "id: there is no key with this id"),
    ],
)
def test_invalid_arguments_are_reported(
    file: str, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    given = [file if argument == "FILE" else argument for argument in arguments]
    assert main(["keys", *given]) == 2
    assert words in capsys.readouterr().err


LIMITED = """
[[routes.middleware]]
use = "limiter"
quota = "10/m"
plan = "claim:plan"
plans = { free = "20/m", gold = "100/m" }
"""


@pytest.mark.parametrize(
    ("limiter", "plan", "warned"),
    [(LIMITED, "gold", False), (LIMITED, "glod", True), (LIMITED, "", False), ("", "glod", False)],
)
def test_a_plan_that_no_limiter_has_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limiter: str, plan: str, warned: bool
) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(MEMORY + ROUTE + limiter)
    assert main(["keys", "create", str(path), "--owner", "acme", "--plan", plan]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("key: acme_")
    expected = (
        f"wsgigate: warning: --plan: no limiter of {path} has the plan 'glod', so the default "
        "quotas apply; the plans are free, gold\n"
    )
    assert said.err == (expected if warned else "")


@pytest.mark.parametrize("arguments", [[], ["create", "gateway.toml"], ["revoke", "gateway.toml"]])
def test_a_missing_argument_is_reported(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["keys", *arguments])
    assert raised.value.code == 2
    assert "required" in capsys.readouterr().err


def test_a_store_private_to_the_workers_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text('[store]\nurl = "memory:"\n' + ROUTE)
    assert main(["keys", "create", str(path), "--owner", "acme"]) == 2
    assert "is private to each worker" in capsys.readouterr().err


def test_keys_that_cannot_be_written_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(FILE.replace("keys.json", "none/keys.json") + ROUTE)
    assert main(["keys", "create", str(path), "--owner", "acme"]) == 1
    assert "cannot be written: No such file" in capsys.readouterr().err
    (tmp_path / "none" / "keys.json").mkdir(parents=True)
    assert main(["keys", "list", str(path)]) == 1
    assert "the keys cannot be read" in capsys.readouterr().err


def test_the_command_changes_the_keys_of_a_running_gateway(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(FILE + ROUTE)
    gateway = wsgigate.load(str(path))
    command = [sys.executable, "-m", "wsgigate", "keys", "create", str(path), "--owner", "a"]
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, check=True, timeout=60
    )
    assert ask(gateway, json.loads(done.stdout)["key"]) == 200
    gateway.close()
