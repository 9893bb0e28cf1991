"""The command maintenance and the gateways of the same file share the maintenance switch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from werkzeug.test import Client

import wsgigate
from wsgigate.cli import main

FILE = """\
[store]
url = "lmdb:data"
[maintenance]
[services.orders]
instances = ["http://127.0.0.1:9"]
[[routes]]
path = "/orders"
service = "orders"
[[routes]]
path = "/demo"
app = "wsgiref.simple_server:demo_app"
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "gateway.toml"
    path.write_text(FILE)
    return str(path)


def ask(file: str, path: str = "/demo") -> int:
    gateway = wsgigate.load(file)
    try:
        return Client(gateway).get(path, buffered=True).status_code
    finally:
        gateway.close()


@pytest.mark.parametrize(
    ("scope", "path"),
    [([], "/demo"), (["--route", "/demo"], "/demo"), (["--service", "orders"], "/orders")],
)
def test_the_gateway_responds_with_503_after_the_command_switched_it(
    file: str, capsys: pytest.CaptureFixture[str], scope: list[str], path: str
) -> None:
    assert main(["maintenance", file, "on", *scope, "--for", "1h", "--message", "Soon."]) == 0
    name = {"": "gateway", "--route": "route:/demo", "--service": "service:orders"}[
        scope[0] if scope else ""
    ]
    when = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    said = capsys.readouterr().out
    assert re.fullmatch(f"{name}: out of service since {when} until {when}: Soon.\n", said)
    assert ask(file, path) == 503
    assert main(["maintenance", file, "status"]) == 0
    assert capsys.readouterr().out == said
    assert main(["maintenance", file, "off", *scope]) == 0
    assert capsys.readouterr().out == "all in service\n"
    assert ask(file) == 200


def test_the_command_switches_a_running_gateway(file: str) -> None:
    gateway = wsgigate.load(file)
    command = [sys.executable, "-m", "wsgigate", "maintenance", file, "on"]
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)
    assert Client(gateway).get("/demo", buffered=True).status_code == 503
    gateway.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["on", "--service", "order"],
            '"service:order" is not a scope of this gateway; did you mean',
        ),
        (["on", "--route", "/x"], '"route:/x" is not a scope'),
        (["on", "--for", "soon"], "expected a duration"),
        (["on", "--for", "0s"], "for: more than 0 seconds"),
        (["on", "--message", "two\nlines"], "message: a text of one line"),
        (["off", "--for", "1h"], "--for and --message: allowed with on only"),
        (["status", "--message", "x"], "--for and --message: allowed with on only"),
    ],
)
def test_invalid_arguments_of_maintenance_are_reported(
    file: str, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["maintenance", file, *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "code", "words"),
    [
        ("[maintenance]\n", "", 2, "has no [maintenance]"),
        ("lmdb:data", "memory:", 2, "is private to each worker"),
        ("[maintenance]\n", "[maintenance]\nx = 1\n", 2, "maintenance.x"),
    ],
)
def test_a_file_without_a_maintenance_table_is_an_error(
    file: str,
    capsys: pytest.CaptureFixture[str],
    before: str,
    after: str,
    code: int,
    words: str,
) -> None:
    Path(file).write_text(FILE.replace(before, after))
    assert main(["maintenance", file, "on"]) == code
    assert words in capsys.readouterr().err


def test_a_failing_store_is_reported(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").write_text("no folder")
    assert main(["maintenance", file, "on"]) == 1
    assert "unknown whether the switch took effect" in capsys.readouterr().err


def test_routes_and_explain_show_a_split(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    shares = 'services = [{ service = "orders", weight = 95 }, { service = "next", weight = 5 }]'
    text = FILE.replace('service = "orders"', shares)
    text = text.replace("[[routes]]", 'fallback = { stale = true, body = "" }\n[[routes]]', 1)
    text = text.replace(shares, f'{shares}\nmirror = {{ service = "next" }}')
    Path(file).write_text(text + '[services.next]\ninstances = ["http://127.0.0.1:10"]\n')
    assert main(["routes", file]) == 0
    assert "orders (95), next (5)" in capsys.readouterr().out
    assert main(["explain", file, "GET", "/orders/7"]) == 0
    told = capsys.readouterr().out.splitlines()[-6:]
    assert [line.split(maxsplit=1) for line in told] == [
        ["service", "orders   (weight 95)"],
        ["upstream", "GET http://127.0.0.1:9/orders/7"],
        ["service", "next   (weight 5)"],
        ["upstream", "GET http://127.0.0.1:10/orders/7"],
        ["fallback", "earlier answers, then a fixed answer"],
        ["mirror", "next"],
    ]
