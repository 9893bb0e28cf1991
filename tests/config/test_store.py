"""The store of a gateway: its status, its errors, and what two gateways in one folder share."""

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
from wsgigate.config.build import build, check, check_file
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import parse, read
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


def test_health_reports_the_usage_of_the_store_but_not_its_path(tmp_path: Path) -> None:
    told = health(text(f"lmdb:{tmp_path}/store"))
    assert told == {
        "kind": "lmdb",
        "used": told["used"],
        "limit": 256 * 1024 * 1024,
        "items": told["items"],
    }
    assert 0 < told["used"] < 100_000
    assert 1 <= told["items"] <= 3  # the limit, and as soon as it is written the worker's report
    assert str(tmp_path) not in json.dumps(told)


def test_health_reports_the_number_of_values_of_a_memory_store() -> None:
    told = health(text("memory:"))
    assert told == {"kind": "memory", "items": told["items"], "maxItems": 100_000}
    assert 1 <= told["items"] <= 3


def test_health_responds_while_the_store_fails(tmp_path: Path) -> None:
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
def test_two_gateways_in_one_store_folder_share_only_what_has_the_same_name(
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


def test_a_misconfigured_store_is_an_error_at_its_key(
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


def test_a_relative_store_folder_is_relative_to_the_file(tmp_path: Path) -> None:
    path = str(tmp_path / "gateway.toml")
    store: Any = build(parse('[store]\nurl = "lmdb:data"\n'), path=path).store
    assert store.path == str(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_check_reports_whether_the_store_can_be_used(tmp_path: Path) -> None:
    path = str(tmp_path / "gateway.toml")
    check(parse('[store]\nurl = "lmdb:data"\n'), path=path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        check(parse('[store]\nurl = "lmdb:file"\n'), path=path)
    ((key, _),) = caught.value.errors
    assert key == "store.url"


def test_the_keys_in_a_redis_depend_on_the_gateways_name_and_not_on_its_file(
    tmp_path: Path,
) -> None:
    text = '[gateway]\nname = "shop"\n[store]\nurl = "redis://h"\n'
    stores: list[Any] = [
        build(parse(text), path=str(tmp_path / file)).store for file in ("one.toml", "two.toml")
    ]
    prefixes = {store.prefix for store in stores}
    assert prefixes == {"wsgigate:shop:"}


def test_check_warns_when_a_redis_cannot_be_reached() -> None:
    text = '[store]\nurl = "redis://name:secret-word@127.0.0.1:1/0?prefix=x"\n'
    check(parse(text))
    parsed = read(text)
    check_file(parsed, "").gateway.close()
    key, said = parsed.warnings[-1]
    assert key == "store.url"
    assert said.startswith("the store redis://127.0.0.1:1/0 fails: ")
    assert "refused" in said
    assert "secret-word" not in said


@pytest.mark.parametrize("url", ["redis://:secret-word@h/x", "redis://:secret/word@h", "redis:h"])
def test_an_invalid_redis_url_is_an_error_of_the_file(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(parse(f'[store]\nurl = "{url}"\n'))
    ((key, said),) = caught.value.errors
    assert key == "store.url"
    assert "secret" not in said
    assert "word" not in said.replace("password", "")


def test_two_files_never_share_a_store_by_accident(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: None
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    stores: list[Any] = [
        build(parse(f'[gateway]\nname = "{name}"'), path=str(tmp_path / file)).store
        for name in ("a", "b")
        for file in ("one.toml", "two.toml")
    ]
    paths = {store.path for store in stores}
    assert len(paths) == 4
