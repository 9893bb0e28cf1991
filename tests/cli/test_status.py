"""The command status: the overview of a running gateway and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from werkzeug.test import Client

import wsgigate
from tests.support.admin import VIEWER, bearer
from wsgigate.cli.main import main
from wsgigate.cli.status import TOKEN, address_of, lines
from wsgigate.config.load import parse
from wsgigate.testing.backend import Backend, cut, reply

FILE = f"""
store.url = "memory:"
[gateway]
name = "shop"
[admin]
viewer_token = "{VIEWER}"
"""

BROKEN = """
[services.orders]
instances = [{ url = "http://127.0.0.1:9", weight = 0 }]
[[routes]]
path = "/orders"
service = "orders"
"""


def overview(tmp_path: Path, more: str, token: str) -> bytes:
    """Return the response of a gateway to a request for its overview."""
    file = tmp_path / "served.toml"
    file.write_text(FILE + more)
    gateway = wsgigate.load(str(file))
    found = Client(gateway).get("/_gateway/overview", headers=bearer(token))
    gateway.close()
    return reply(found.data, status=found.status)


@pytest.mark.parametrize(("more", "state", "code"), [("", "ok", 0), (BROKEN, "error", 2)])
def test_the_overview_is_json_and_the_exit_code_its_state(
    tmp_path: Path,
    more: str,
    state: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TOKEN, VIEWER)
    with Backend(overview(tmp_path, more, VIEWER)) as served:
        assert main(["status", f"{served.url}/_gateway"]) == code
    [request] = served.requests
    assert request.target == "/_gateway/overview"
    assert request.value("Authorization") == f"Bearer {VIEWER}"
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["gateway"]["name"]) == (state, "shop")
    text = list(lines(found))
    assert text[0] == f"shop 0.0.0: {state}"
    assert text[-1].startswith("Service 'orders'") is (state == "error")


def test_a_wrong_token_is_named_and_never_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "w" * 32)
    with Backend(overview(tmp_path, "", "w" * 32)) as served:
        assert main(["status", f"{served.url}/_gateway"]) == 2
    err = capsys.readouterr().err
    assert "/_gateway/overview was answered with 401. Admin token required!" in err
    assert "w" * 32 not in err


def test_a_gateway_that_does_not_answer_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, VIEWER)
    with Backend(cut(b"")) as served:
        assert main(["status", served.url]) == 2
    assert "no answer: " in capsys.readouterr().err


def test_a_url_needs_a_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    assert main(["status", "http://127.0.0.1:1/_gateway"]) == 2
    assert TOKEN in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bind", "expected"),
    [
        ("127.0.0.1:3000", "http://127.0.0.1:3000/_gateway"),
        ("0.0.0.0:80", "http://127.0.0.1:80/_gateway"),
        ("[::]:80", "http://[::1]:80/_gateway"),
    ],
)
def test_a_file_gives_the_address_and_the_token(bind: str, expected: str) -> None:
    config = parse(FILE.replace("[gateway]", f'[gateway]\nbind = "{bind}"'))
    assert address_of(config, "x.toml") == (expected, VIEWER)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no .admin. table"),
        ("[admin]", "viewer_token is required"),
        (
            f'[gateway]\nbind = "unix:/x"\ntrusted_proxies = ["unix"]\n[admin]\ntoken = "{VIEWER}"',
            "give the URL",
        ),
    ],
)
def test_a_file_without_what_is_needed_is_an_error(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        address_of(parse(text), "x.toml")
