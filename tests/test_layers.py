"""Imports only go down: who may import whom, read from the sources."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "wsgigate"
MODULES = sorted(PACKAGE.rglob("*.py"))

GROUND = {
    "addresses",
    "clocks",
    "cookies",
    "copied",
    "errands",
    "credentials",
    "fields",
    "fixed",
    "forwarding",
    "held",
    "instead",
    "kept_body",
    "leases",
    "limit_fields",
    "limit_keys",
    "peer_watch",
    "log_level",
    "problem",
    "process",
    "records",
    "refusals",
    "request_log",
    "repeated",
    "rewriting",
    "sink",
    "target",
    "tls",
    "tokens",
    "units",
    "wsgi",
}

ALLOWED: dict[str, set[str]] = {
    **dict.fromkeys(GROUND, GROUND),
    "fields": GROUND | {"rules"},
    "limit_fields": GROUND | {"rules"},
    "problem": GROUND | {"rules"},
    "tls": GROUND | {"rules"},
    "limit_keys": GROUND | {"rules"},
    "rules": {"rules"},
    "bodies": GROUND | {"rules"},
    "store": {"clocks", "process", "rules", "store"},
    "denylist": {"clocks", "rules", "store"},
    "maintenance": {"clocks", "repeated", "rules", "store"},
    "circuits": {"clocks", "repeated", "rules", "store", "circuits"},
    "middleware": GROUND | {"rules", "store", "circuits", "denylist", "maintenance"},
    "discovery": GROUND | {"rules", "bodies", "store", "discovery"},
    "proxy": GROUND | {"rules", "circuits", "discovery", "proxy"},
    "admin": GROUND
    | {"rules", "bodies", "store", "circuits", "denylist", "discovery", "maintenance", "admin"}
    | {"worker_reports"},
    "worker_reports": GROUND | {"rules", "store", "discovery"},
    "gateway": GROUND | {"rules", "store", "discovery", "proxy", "worker_reports"},
    "frameworks": GROUND | {"frameworks"},
    "testing": GROUND | {"rules", "store", "middleware", "testing"},
}
ROOF = {"config", "cli", "integrations", "__init__", "__main__"}
"""May import everything."""

DRIVERS = {
    "lmdb": {"store/environment.py", "store/failures.py"},
    "dns": {"discovery/sources/dns.py"},
    "redis": {"store/redis_connections.py", "store/redis_cluster.py"},
    "httptools": {"proxy/wire.py"},
    "jwt": {"tokens.py"},
    "cryptography": {"tokens.py"},
    "requests": {"proxy", "discovery", "tls.py"},
    "urllib3": {"proxy", "discovery"},
    "granian": {"integrations/granian.py"},
    "gunicorn": {"integrations"},
    "h2": {"integrations/gate_http2_client.py"},
    "yaml": {"config/yaml.py"},
    "werkzeug": {"frameworks/flask.py"},
    "flask": {"frameworks/flask.py"},
    "pytest": {"testing/pytest_plugin.py"},
    "django": {"frameworks/django.py"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            if node.module == "wsgigate":
                names |= {f"wsgigate.{alias.name}" for alias in node.names}
    return names


def floor(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_floor_and_below(path: Path) -> None:
    here = floor(path)
    if here not in ROOF:
        assert here in ALLOWED, f"{here} is on no floor"
    for name in imported(path):
        if name.startswith("wsgigate."):
            other = name.split(".")[1]
            if here not in ROOF:
                assert other in ALLOWED[here], f"{here} imports {name}"
                assert other not in ROOF
    if here == "middleware":
        siblings = [name for name in imported(path) if name.startswith("wsgigate.middleware.")]
        assert not siblings, "middlewares do not know each other"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_other_package_has_its_place(path: Path) -> None:
    inside = str(path.relative_to(PACKAGE))
    for name in imported(path):
        top = name.partition(".")[0]
        if top in ("", "wsgigate") or top in sys.stdlib_module_names:
            continue
        places = DRIVERS.get(top)
        assert places is not None, f"{inside} imports {top}"
        assert inside in places or inside.split("/")[0] in places, f"{inside} imports {top}"


DATABASES = {"dbm", "fcntl", "mmap", "shelve", "sqlite3", "multiprocessing.shared_memory"}
"""What of the standard library keeps state that others see."""

STORES = {"lmdb", "environment", "memory", "redis"}
"""The kinds of stores: all but those who put a gateway together take any of them, by its URL."""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_workers_share_goes_through_a_store(path: Path) -> None:
    here, names = floor(path), imported(path)
    if here == "store":
        return
    assert names.isdisjoint(DATABASES), "it keeps state of its own"
    kinds = {name for name in names if name.removeprefix("wsgigate.store.") in STORES - {name}}
    assert not kinds or here == "config", f"it knows {kinds}"
