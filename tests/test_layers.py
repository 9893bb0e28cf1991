"""Imports only go down: which folder may import which, read from the sources."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "wsgigate"
MODULES = sorted(PACKAGE.rglob("*.py"))

BELOW: dict[str, set[str]] = {
    "lazy": set(),
    "units": set(),
    "rules": set(),
    "runtime": set(),
    "http": {"rules", "runtime"},
    "telemetry": {"http", "rules", "runtime"},
    "store": {"rules", "runtime", "telemetry"},
    "auth": {"client", "http", "rules", "runtime", "store", "telemetry"},
    "client": {"http", "rules", "runtime", "telemetry"},
    "coordination": {"auth", "http", "rules", "runtime", "store", "telemetry"},
    "registration": {"client", "coordination", "http", "rules", "runtime", "store", "telemetry"},
    "discovery": {"client", "coordination", "rules", "runtime", "store", "telemetry", "units"},
    "registry": {
        "auth",
        "client",
        "coordination",
        "discovery",
        "http",
        "rules",
        "runtime",
        "store",
        "telemetry",
        "units",
    },
    "proxy": {"client", "coordination", "discovery", "http", "rules", "runtime", "telemetry"},
    "middleware": {
        "auth",
        "coordination",
        "http",
        "rules",
        "runtime",
        "store",
        "telemetry",
        "units",
    },
    "admin": {"auth", "coordination", "discovery", "http", "rules", "store", "telemetry", "units"},
    "gateway": {
        "auth",
        "coordination",
        "discovery",
        "proxy",
        "registry",
        "rules",
        "runtime",
        "store",
        "telemetry",
    },
    "server_check": {"http", "runtime"},
    "testing": {"http", "lazy", "middleware", "rules", "store", "telemetry"},
}
"""A folder or module, and what else of the package it may import."""

BELOW["config"] = set(BELOW) - {"registration", "testing"}
BELOW["servers"] = set(BELOW) - {"registration", "testing"}
BELOW["__init__"] = set(BELOW) - {"servers", "server_check", "testing", "units"}
"""The public names; it imports each when it is first used."""

BELOW["cli"] = set(BELOW) - {"testing"}
BELOW["__main__"] = {"cli"}
BELOW["flask"] = {
    "auth",
    "cli",
    "config",
    "gateway",
    "http",
    "middleware",
    "rules",
    "store",
}
BELOW["django"] = set(BELOW) - {"__main__", "flask", "registration", "servers", "testing"}
"""It builds a gateway from Django's settings, and its commands are those of the command line."""

DRIVERS = {
    "lmdb": {"store/lmdb_environment.py"},
    "dns": {"discovery/sources/dns.py"},
    "redis": {"store/redis_connections.py", "store/redis_servers.py"},
    "hiredis": {"store/redis_connections.py"},
    "httptools": {"client/response_reader.py"},
    "argon2": {"auth/passwords.py"},
    "http_message_signatures": {"auth/message_signature.py"},
    "opentelemetry": {
        "telemetry/span_export.py",
        "telemetry/span_provider.py",
        "telemetry/spans.py",
    },
    "http_sf": {"auth/message_signature.py"},
    "jwt": {"auth/internal_token.py", "auth/jwk.py", "auth/jwt.py"},
    "cryptography": {
        "auth/client_certificate.py",
        "auth/internal_token.py",
        "auth/jwk.py",
        "auth/jwt.py",
        "auth/webhooks.py",
    },
    "requests": {"client", "proxy", "runtime/tls.py"},
    "urllib3": {"client", "proxy"},
    "granian": {"servers/granian.py"},
    "gunicorn": {"registration/gunicorn.py", "server_check.py", "servers"},
    "yaml": {"config/yaml.py"},
    "h2": {"servers"},
    "pytest": {"testing/pytest_plugin.py"},
    "werkzeug": {"flask"},
    "django": {"django"},
    "asgiref": {"django"},
    "rest_framework": {"django/rest_framework.py"},
    "flask": {"flask"},
    "click": {"flask/commands.py"},
}
"""The folders and files that may import another package."""


def module_name(path: Path) -> str:
    parts = ("wsgigate", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


NAMES = {module_name(path): path for path in MODULES}


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if name in NAMES)
            if not all(name in NAMES for name in names):
                yield node.module or ""


@cache
def imports_of(path: Path) -> frozenset[str]:
    return frozenset(imported(ast.parse(path.read_text())))


def folder(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def label(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_a_module_imports_only_from_its_own_folder_and_below(path: Path) -> None:
    here = folder(path)
    assert here in BELOW, f"{here} is on no floor"
    for name in imports_of(path):
        if name.startswith("wsgigate."):
            other = name.split(".")[1]
            known = other in BELOW or other == "__version__"
            assert not known or other in BELOW[here] | {here, "__version__"}, f"imports {name}"
    if here == "middleware":
        siblings = [name for name in imports_of(path) if name.startswith("wsgigate.middleware.")]
        assert not siblings, "middlewares do not know each other"


def test_folders_form_no_circle() -> None:
    placed: set[str] = set()
    while len(placed) < len(BELOW):
        ready = {name for name, below in BELOW.items() if name not in placed and below <= placed}
        assert ready, f"a circle among {sorted(set(BELOW) - placed)}"
        placed |= ready


def test_modules_form_no_circle() -> None:
    imports = {
        name: {other for other in imports_of(path) if other in NAMES and other != name}
        for name, path in NAMES.items()
    }
    placed: set[str] = set()
    while len(placed) < len(imports):
        ready = {name for name, below in imports.items() if name not in placed and below <= placed}
        assert ready, f"a circle among {sorted(set(imports) - placed)}"
        placed |= ready


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_only_its_driver_imports_another_package(path: Path) -> None:
    inside = label(path)
    for name in imports_of(path):
        top = name.partition(".")[0]
        if top in ("", "wsgigate") or top in sys.stdlib_module_names:
            continue
        places = DRIVERS.get(top)
        assert places is not None, f"{inside} imports {top}"
        assert inside in places or inside.split("/")[0] in places, f"{inside} imports {top}"


DATABASES = {"dbm", "fcntl", "mmap", "shelve", "sqlite3", "multiprocessing.shared_memory"}
"""Modules of the standard library that keep state which other processes see."""

STORES = {"lmdb", "lmdb_environment", "memory", "redis"}
"""The kinds of stores: only the configuration, which builds a gateway, may choose one. The public
names include them."""


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_what_workers_share_goes_through_a_store(path: Path) -> None:
    here, names = folder(path), imports_of(path)
    if here == "store":
        return
    own = DATABASES
    if here == "servers":
        own = DATABASES - {"fcntl"}  # it tells of a socket how much is unread
    if path.name == "drain.py":
        own = DATABASES - {"mmap"}  # one byte between a master and its workers, before any store
    if here == "telemetry":
        own = DATABASES - {"fcntl", "mmap"}  # counts that decide nothing, too often for a store
    assert names.isdisjoint(own), "it keeps state of its own"
    kinds = {name for name in names if name.removeprefix("wsgigate.store.") in STORES - {name}}
    assert not kinds or here in ("config", "__init__"), f"it imports {kinds}"


# One mechanism for one thing: threads and forks, in runtime/.

THREADS = {
    "runtime/threads.py",
    "telemetry/access_log.py",  # its last lines are written at the end of the process
    "client/dial.py",  # a lookup that hangs occupies its thread: the queue must not wait for it
    "discovery/health_results.py",  # one thread per check, which ends with it
    "proxy/disconnect.py",  # it never ends, and waits for sockets
    "proxy/health_probe.py",  # a selector's loop, which is woken by a socket
    "registration/__init__.py",  # waits once for the drain, and ends with the process
    "registration/gunicorn.py",  # the same, in gunicorn's master
    "registration/heartbeat.py",  # it runs in the master of a foreign server, and is fed by signals
    "servers/granian.py",  # waits for signals, from before the app is loaded
    "servers/gunicorn.py",  # in the master: the delay before it stops
    "servers/gunicorn_threads.py",  # the threads that serve requests
}
"""The files that may start a thread by themselves."""

COMPARES_PROCESSES = {
    "runtime/fork.py",
    "registration/__init__.py",  # gevent's patching renews as well, and must not end a registration
    "registration/heartbeat.py",  # the same
    "registration/process.py",  # a signal may come in a child before the hook of the fork has run
}
"""The files that may compare process ids; objects elsewhere are renewed by ``runtime/fork.py``."""


def calls(tree: ast.AST) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_threads_and_forks_have_one_mechanism(path: Path) -> None:
    inside, tree = label(path), ast.parse(path.read_text())
    if folder(path) != "testing":
        assert "threading.Thread" not in calls(tree) or inside in THREADS
    # granian's adapter resets what belongs to the process itself: its file of signals
    hooks = {"runtime/fork.py", "servers/granian.py"}
    assert "os.register_at_fork" not in calls(tree) or inside in hooks
    compared = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    ids = [text for text in compared if "os.getpid()" in text or "fork.pid" in text]
    assert not ids or inside in COMPARES_PROCESSES, ids
