"""What was made before gevent patched Python is made anew: a server patches in its worker.

``gunicorn -k gevent --preload`` loads the app in its master, forks, and patches after that. A lock
of the threads that gevent replaced blocks all greenlets of the worker, for good.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.config.conftest import FULL, SECRET

MAKE = """
import gc, os, queue, select, selectors, socket, ssl, sys, threading, types, _thread
import gevent
NATIVE = {
    type(_thread.allocate_lock()), threading.RLock().__class__, threading.Thread, queue.SimpleQueue,
    socket.socket, ssl.SSLSocket, ssl.SSLContext, threading.local,
    type(select.poll()), type(select.epoll()),
}
from tests.config import conftest
full_site = types.ModuleType("full_site")
vars(full_site).update(
    echo=conftest.echo, fallback=conftest.fallback, broken=conftest.broken, Stamp=conftest.Stamp,
    exempted=lambda environ: False, cost=lambda environ: 1, plan=lambda environ: None,
    caller=lambda environ: environ["PATH_INFO"],
)
sys.modules["full_site"] = full_site
import wsgigate
from tests.middleware.test_contract import MIDDLEWARES
from wsgigate.store.open import open_store
from wsgigate.store.memory import MemoryStore

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"ok"]

made = [wsgigate.load(sys.argv[1]), wsgigate.load(sys.argv[2])]
made += [make(app) for _, make, _ in MIDDLEWARES]
made += [
    open_store(url)
    for url in (
        "memory:", "lmdb:" + sys.argv[3], "redis://127.0.0.1:1", "rediss://127.0.0.1:1",
        "redis+sentinel://127.0.0.1:1/main", "redis+cluster://127.0.0.1:1",
    )
]
"""
LOOK = """
from gevent import monkey
monkey.patch_all()

def natives(value):
    if type(value) in NATIVE:
        yield type(value).__name__
    elif isinstance(value, (list, tuple, set)):
        for each in value:
            yield from natives(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from natives(each)
    elif type(value).__module__ in ("threading", "queue", "selectors"):
        for each in vars(value).values():
            yield from natives(each)

def attributes(thing):
    for kind in type(thing).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(thing, name):
                yield name, getattr(thing, name)
    yield from getattr(thing, "__dict__", {}).items()

found = set()
for thing in gc.get_objects():
    if str(type(thing).__module__).startswith("wsgigate"):
        for name, value in attributes(thing):
            for native in natives(value):
                found.add(f"{type(thing).__module__}.{type(thing).__name__}.{name}: {native}")
for name, module in list(sys.modules.items()):
    if name.startswith("wsgigate") and module is not None:
        for attribute, value in vars(module).items():
            if not isinstance(value, type):
                for native in natives(value):
                    found.add(f"{name}.{attribute}: {native}")
print(*sorted(found), sep="\\n")
"""
FORK = """
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
MORE = """
[gateway]
name = "more"
[store]
url = "memory:"
[admin]
[registry]
doors = ["eureka", "consul"]
token = "a-token-of-32-or-more-characters"
[services.found]
discover = "registry"
health = { path = "/health" }
hedge = { after = "100ms" }
breaker = {}
outlier = {}
max_in_flight = 3
[services.named]
discover = "dns:localhost:1"
tls = { verify = true }
[[routes]]
path = "/found"
service = "found"
websocket = true
[[routes]]
path = "/named"
service = "named"
"""


@pytest.mark.parametrize("when", ["in a worker that was forked", "in the same process"])
def test_no_lock_made_before_gevent_patched_is_still_used(when: str, tmp_path: Path) -> None:
    (tmp_path / "full.toml").write_text(FULL)
    (tmp_path / "more.toml").write_text(MORE)
    source = MAKE + (FORK if "forked" in when else "") + LOOK
    done = subprocess.run(
        [sys.executable, "-c", source, "full.toml", "more.toml", str(tmp_path / "store")],
        env={
            **os.environ,
            "SHOP_SECRET": SECRET,
            "HOME": str(tmp_path),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip(), done.stdout
