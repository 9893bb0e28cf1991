"""The dashboard and the rules ask for metrics and labels that the gateway serves."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from wsgigate.telemetry.metrics import Family, families

FOLDER = Path(__file__).parents[2] / "examples" / "observability"

MEASURING = sorted(
    str(path.relative_to(FOLDER.parents[1]).with_suffix("")).replace("/", ".")
    for path in (FOLDER.parents[1] / "wsgigate").rglob("*.py")
    if "wsgigate.telemetry.metrics import" in path.read_text()
    or "wsgigate.telemetry import metrics" in path.read_text()
)

NAME = re.compile(r"\b((?:wsgigate|http)_[a-z_]+)\b(?:\{([^}]*)\})?")
LABEL = re.compile(r"(\w+)\s*(?:=~|!=|=|!~)")
BY = re.compile(r"\bby \(([^)]*)\)")
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}


def expressions() -> Iterator[tuple[str, str]]:
    board = json.loads((FOLDER / "dashboard.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]


def rules() -> list[dict[str, Any]]:
    groups = import_module("yaml").safe_load((FOLDER / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def served() -> dict[str, Family]:
    for name in MEASURING:
        import_module(name.removesuffix(".__init__"))
    return {
        family.name + suffix: family
        for family in families().values()
        for suffix in SUFFIXES[family.kind]
    }


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_each_expression_asks_for_what_is_served(where: str, expression: str) -> None:
    known = served()
    grouped = {name.strip() for names in BY.findall(expression) for name in names.split(",")}
    labels: set[str] = {"le"}
    for name, selector in NAME.findall(BY.sub("", expression)):
        if name in LABEL.findall(expression) or name in grouped:  # a label such as http_route
            continue
        assert name in known, f"{where}: {name} is not served"
        labels |= set(known[name].labels)
        wanted = set(LABEL.findall(selector))
        assert wanted <= {*known[name].labels, "le"}, f"{where}: {wanted} of {name}"
    assert grouped <= labels, f"{where}: {grouped}"


def test_each_alert_reads_records_that_exist() -> None:
    records = {rule["record"] for rule in rules() if "record" in rule}
    read = {name for _, text in expressions() for name in re.findall(r"wsgigate:[\w:]+", text)}
    assert read == records


def test_the_bounds_of_apdex_are_those_of_buckets() -> None:
    buckets = served()["http_server_request_duration_seconds_bucket"].bounds
    text = (FOLDER / "dashboard.json").read_text()
    assert {float(bound) for bound in re.findall(r'le=\\"([0-9.]+)\\"', text)} <= set(buckets)


def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", FOLDER / "rules.yml"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
