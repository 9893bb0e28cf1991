"""A gateway and its store: what is told of it, and what two gateways share in one folder."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

import wsgigate
from wsgigate.config.build import build
from wsgigate.config.load import parse
from wsgigate.store.lmdb import LmdbStore

GATEWAY = """
[gateway]
name = "{name}"
[store]
url = "{url}"
[admin]
[[middleware]]
use = "limiter"
quota = "50 per hour"
name = "{limit}"
on_store_error = "allow"
"""


def health(text: str, path: str = "") -> dict[str, Any]:
    gateway = build(parse(text, environ={}), path=path)
    try:
        told = Client(gateway).get("/_gateway/health").get_json()
    finally:
        gateway.close()
    assert {"gateway", "services", "summary"} < told.keys()
    store: dict[str, Any] = told["store"]
    return store


def text(url: str, name: str = "shop", limit: str = "all") -> str:
    return GATEWAY.format(url=url, name=name, limit=limit)


def test_health_tells_how_full_the_file_of_the_store_is_and_not_where(tmp_path: Path) -> None:
    told = health(text(f"lmdb:{tmp_path}/store"))
    assert told == {"kind": "lmdb", "used": told["used"], "limit": 256 * 1024 * 1024, "items": 1}
    assert 0 < told["used"] < 100_000
    assert str(tmp_path) not in json.dumps(told)


def test_health_tells_how_many_values_a_store_of_one_process_has() -> None:
    assert health(text("memory:")) == {"kind": "memory", "items": 1, "maxItems": 100_000}


def test_health_answers_when_the_store_does_not(tmp_path: Path) -> None:
    (tmp_path / "store" / "data.mdb").mkdir(parents=True)  # no file, and not to be moved aside
    told = health(text(f"lmdb:{tmp_path}/store"))
    told.pop("since", None)  # once the worker's thread has noticed
    assert told == {"kind": "lmdb", "error": "Store unavailable"}


SERVE = """
import sys
from werkzeug.test import Client
import wsgigate
gateway = wsgigate.load(sys.argv[1])
client = Client(gateway)
print("ready", flush=True)
sys.stdin.readline()
print(sum(client.get("/").status_code != 429 for _ in range(60)))
gateway.close()
"""


@pytest.mark.parametrize(("limits", "allowed"), [(("all", "all"), 50), (("one", "two"), 100)])
def test_two_gateways_on_one_folder_share_what_has_one_name_and_nothing_else(
    tmp_path: Path, limits: tuple[str, str], allowed: int
) -> None:
    processes = []
    for number, limit in enumerate(limits):
        file = tmp_path / f"{number}.toml"
        file.write_text(text("lmdb:store", f"gateway-{number}", limit))
        processes.append(
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", SERVE, str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        )
    passed = 0
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        passed += int(process.communicate(timeout=60)[0])
        assert process.returncode == 0
    assert passed == allowed
    store = LmdbStore(tmp_path / "store")
    assert store.usage()["items"] == len(set(limits))
    store.close()


def test_a_store_that_can_never_be_used_is_an_error_that_names_the_key_of_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store").write_text("a file in the way")
    file = tmp_path / "shop.toml"
    file.write_text(text(f"lmdb:{tmp_path}/store"))
    gateway = wsgigate.load(str(file))
    with caplog.at_level(logging.ERROR, "wsgigate"):
        assert Client(gateway).get("/").status_code == 500
    gateway.close()
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    told = str(record.exc_info[1])
    assert "the limit 'all' cannot be counted" in told
    assert f"{tmp_path}/store is not a folder; correct store.url in {file}" in told
