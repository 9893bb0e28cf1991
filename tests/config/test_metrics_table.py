"""The table of metrics: where it is recorded, and the listener of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from werkzeug.test import Client

import wsgigate
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import load, read_file
from wsgigate.http.reserved import OWN_LISTENER
from wsgigate.servers import granian, gunicorn

FILE = """
store.url = "memory:"
[gateway]
bind = "127.0.0.1:8000"
{}
[services.orders]
instances = ["http://127.0.0.1:1"]
[[routes]]
path = "/orders"
service = "orders"
"""


def write(folder: Path, tables: str) -> str:
    path = folder / "gateway.toml"
    path.write_text(FILE.format(tables))
    return str(path)


@pytest.mark.parametrize(
    ("tables", "records"),
    [
        ("", False),
        ("[admin]", True),
        ("[metrics]", True),
        ("[admin]\n[metrics]\nenabled = false", False),
    ],
)
def test_metrics_are_recorded_where_they_can_be_read(
    tmp_path: Path, tables: str, records: bool
) -> None:
    assert load(write(tmp_path, tables)).records_metrics == records


@pytest.mark.parametrize(
    ("bind", "message"),
    [
        ("127.0.0.1:8000", "metrics.bind: must have another port than gateway.bind"),
        ("10.0.0.4:8000", "metrics.bind: must have another port than gateway.bind"),
        ("127.0.0.1:0", "metrics.bind: requires a port above 0"),
        ("9464", "metrics.bind: expected an address such as"),
    ],
)
def test_an_unusable_listener_is_an_error(tmp_path: Path, bind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, f'[metrics]\nbind = "{bind}"'))


@pytest.mark.parametrize(("host", "count"), [("127.0.0.1", 0), ("[::1]", 0), ("0.0.0.0", 1)])
def test_a_listener_that_others_can_reach_is_a_warning(
    tmp_path: Path, host: str, count: int
) -> None:
    parsed = read_file(write(tmp_path, f'[metrics]\nbind = "{host}:9464"'))
    assert [key for key, _ in parsed.warnings].count("metrics.bind") == count


def test_gunicorn_listens_at_both_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gunicorn, "last_valid", None)
    settings = gunicorn.settings(write(tmp_path, '[metrics]\nbind = "127.0.0.1:9464"'))
    assert settings["bind"] == ["127.0.0.1:8000", "127.0.0.1:9464"]
    assert settings["worker_class"].metrics_bind == "127.0.0.1:9464"


def test_granian_rejects_a_listener_of_its_own(tmp_path: Path) -> None:
    config = load(write(tmp_path, '[metrics]\nbind = "127.0.0.1:9464"'))
    with pytest.raises(ValueError, match=r"metrics\.bind: granian has one listener only"):
        granian.check(config)


def test_the_listener_of_its_own_reaches_no_route(tmp_path: Path) -> None:
    gateway = wsgigate.load(write(tmp_path, '[metrics]\nbind = "127.0.0.1:9464"'))
    overrides = {"wsgigate.listener": OWN_LISTENER}
    assert Client(gateway).get("/orders").status_code == 503
    assert Client(gateway).get("/orders", environ_overrides=overrides).status_code == 404
    gateway.close()
