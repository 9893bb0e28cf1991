"""Who is drilled beside wsgigate has the same settings, as far as it has such settings at all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import drill
from wsgigate.config.load import load

TOLD = {
    "GATEWAY_PORT": "3200",
    "STORE_URL": "memory:",
    **{f"INSTANCE_{name}": f"http://127.0.0.1:320{at}" for at, name in enumerate("ABC", 1)},
}


@pytest.fixture
def ours() -> Any:
    """Return the settings of the service: a table with given keys is a dictionary of these."""
    table = load(str(drill.DRILL / "gateway.toml"), environ=TOLD).services["items"]
    tables = {name: getattr(table, name) for name in ("retry", "outlier", "health")}
    return SimpleNamespace(
        timeout=table.timeout, **{name: SimpleNamespace(**each) for name, each in tables.items()}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for candidate in drill.CANDIDATES:
        candidate.command(tmp_path, 3200)
    return tmp_path


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) / (1000 if unit == "ms" else 1)


def test_envoy_does_as_the_file_says(ours: Any, folder: Path) -> None:
    resources = json.loads((folder / "envoy.json").read_text())["static_resources"]
    [cluster] = resources["clusters"]
    [check], ejection = cluster["health_checks"], cluster["outlier_detection"]
    assert seconds(cluster["connect_timeout"]) == ours.retry.per_try_timeout
    assert ejection["consecutive_5xx"] == ours.outlier.consecutive_failures
    assert seconds(ejection["base_ejection_time"]) == ours.outlier.eject_for
    assert check["http_health_check"]["path"] == ours.health.path
    assert seconds(check["interval"]) == seconds(check["no_traffic_interval"])
    assert seconds(check["interval"]) == ours.health.interval
    assert seconds(check["timeout"]) == ours.health.timeout
    assert check["unhealthy_threshold"] == ours.health.unhealthy_after
    assert check["healthy_threshold"] == ours.health.healthy_after
    [listener] = resources["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
        policy = route["route"]["retry_policy"]
        assert seconds(route["route"]["timeout"]) == ours.timeout
        assert policy["num_retries"] + 1 == ours.retry.attempts
        assert seconds(policy["per_try_timeout"]) == ours.retry.per_try_timeout
    hosts = json.dumps(cluster["load_assignment"])
    assert [port for port in ("3200", "3201", "3202", "3203") if port in hosts] == [
        "3201",
        "3202",
        "3203",
    ]


def test_nginx_does_as_the_file_says(ours: Any, folder: Path) -> None:
    text = (folder / "nginx.conf").read_text()
    assert "$" not in text
    told = dict(re.findall(r"^ *(proxy_\w+) (.+);$", text, re.MULTILINE))
    for name in ("proxy_connect_timeout", "proxy_read_timeout", "proxy_send_timeout"):
        assert seconds(told[name]) == ours.retry.per_try_timeout
    assert int(told["proxy_next_upstream_tries"]) == ours.retry.attempts
    assert seconds(told["proxy_next_upstream_timeout"]) == ours.timeout
    statuses = [f"http_{status}" for status in ours.retry.statuses]
    assert told["proxy_next_upstream"].split() == ["error", "timeout", *statuses]
    servers = re.findall(r"server 127\.0\.0\.1:(\d+) max_fails=(\d+) fail_timeout=(\w+);", text)
    assert [int(port) for port, _, _ in servers] == [3201, 3202, 3203]
    for _, fails, time in servers:
        assert int(fails) == ours.outlier.consecutive_failures
        assert seconds(time) == ours.outlier.eject_for
