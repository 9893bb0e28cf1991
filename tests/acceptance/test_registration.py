"""Services that register: under gunicorn and without, reloaded, killed, stopped, unregistered."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest
import requests

from tests.acceptance.registries import TOKEN, Asked, RegistryServer
from tests.support.servers import Served, Servers, home
from tests.support.waiting import until

LOADED = "app.py is loaded"
APP = f"""\
import logging, os

LOADED = {LOADED!r}

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"served"]

logging.basicConfig(level="INFO", format="%(process)d %(message)s")
print(LOADED, flush=True)
"""
LINE = """
from wsgigate import Registration
Registration("users", port=int(os.environ["PORT"]), tags=["blue"], drain=0.5).start()
"""
CONF = """\
from wsgigate.registration.gunicorn import registered
globals().update(registered("users", tags=["blue"], drain=0.5))
"""
ALONE = """
from wsgiref.simple_server import make_server
make_server("127.0.0.1", int(os.environ["PORT"]), app).serve_forever()
"""

Start = Callable[..., Served]


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with RegistryServer() as server:
        yield server


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a starter of services: ``start(registry, conf=CONF)``, ``start(registry, LINE)``."""

    def begin(
        env: dict[str, str],
        more: str = "",
        *,
        conf: str = "",
        alone: bool = False,
        workers: int = 3,
    ) -> Served:
        (tmp_path / "app.py").write_text(APP + more)
        (tmp_path / "conf.py").write_text("control_socket_disable = True\n" + conf)
        gunicorn = [str(Path(sys.executable).parent / "gunicorn"), "-c", "conf.py", "app:app"]

        def command(port: int) -> list[str]:
            os.environ["PORT"] = str(port)
            if alone:
                return [sys.executable, "app.py"]
            bind = ["--bind", f"127.0.0.1:{port}", "--threads", "4", "--workers", str(workers)]
            return [sys.executable, *gunicorn, *bind]

        served = servers.start(command, tmp_path / f"log{servers.number}", home(tmp_path) | env)
        if not alone:
            # gunicorn loses a SIGTERM that a worker is sent before it has handlers of its own
            until(lambda: served.log.count(LOADED) >= workers)
        return served

    with Servers() as servers:
        yield begin
    os.environ.pop("PORT", None)


def serves(served: Served) -> bool:
    try:
        return requests.get(served.url, timeout=30).text == "served"
    except requests.ConnectionError:
        return False


def speaker(served: Served, number: int = 0) -> int:
    """Return the worker that said it registered the service, the first unless another is meant."""
    said = r"^(?:.*\[)?(\d+)\]? .*users/127.0.0.1-\d+ is registered"
    found = until(lambda: re.findall(said, served.log, re.MULTILINE)[number:])
    return int(found[0])


@pytest.mark.parametrize("how", [{"more": LINE}, {"conf": CONF}], ids=["line", "conf"])
def test_one_worker_registers_for_all_and_is_replaced_when_it_is_killed(
    how: dict[str, str], registry: RegistryServer, start: Start
) -> None:
    served = start(registry.env(), **how)
    instance = registry.wait_until("UP")
    assert (instance.host, instance.port, instance.tags) == ("127.0.0.1", served.port, ("blue",))
    registry.wait_for("POST heartbeat", 2)
    assert registry.count("POST register") == 1
    first = speaker(served)
    assert first in served.workers()
    os.kill(first, signal.SIGKILL)
    registry.wait_for("POST register", 2)
    assert speaker(served, 1) not in (first, served.process.pid)
    assert registry.count("DELETE register") == 0
    served.stop()
    registry.wait_until_gone()


@pytest.mark.parametrize("how", [{"more": LINE}, {"conf": CONF}], ids=["line", "conf"])
def test_a_reload_leaves_the_service_registered(
    how: dict[str, str], registry: RegistryServer, start: Start
) -> None:
    served = start(registry.env(), **how)
    registry.wait_until("UP")
    old = set(served.workers())
    served.signal(signal.SIGHUP)
    until(lambda: len(served.workers()) == 3 and not old & set(served.workers()))
    registry.wait_for("POST register", 2)
    registry.wait_until("UP")
    assert registry.count("DELETE register") == registry.count("PUT status") == 0
    served.stop()
    registry.wait_until_gone()


def test_gunicorn_serves_on_until_gateways_can_know_that_it_drains(
    registry: RegistryServer, start: Start
) -> None:
    served = start(registry.env(), conf=CONF)
    registry.wait_until("UP")
    served_when: list[tuple[str, bool]] = []
    registry.when = lambda asked: served_when.append((asked.what, serves(served)))
    served.signal(signal.SIGTERM)
    assert served.process.wait(25) == 0
    told = [(what, served) for what, served in served_when if what != "POST heartbeat"]
    assert told == [("PUT status", True), ("DELETE register", False)]
    assert registry.instances() == ()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_gunicorn_that_is_stopped_at_once_leaves_too(
    number: int, registry: RegistryServer, start: Start
) -> None:
    served = start(registry.env(), conf=CONF)
    registry.wait_until("UP")
    served.signal(number)
    served.process.wait(25)
    assert registry.instances() == ()
    assert registry.count("PUT status") == 0


def test_an_upgrade_of_gunicorn_leaves_the_service_registered(
    registry: RegistryServer, start: Start
) -> None:
    served = start(registry.env(), conf=CONF, workers=1)
    registry.wait_until("UP")
    [old] = served.workers()
    served.signal(signal.SIGUSR2)
    [new] = until(lambda: [pid for pid in served.workers() if pid != old])
    until(lambda: Path(f"/proc/{new}/task/{new}/children").read_text().split())
    served.signal(signal.SIGTERM)
    assert served.process.wait(25) == 0
    registry.wait_until("UP")
    assert registry.count("DELETE register") == registry.count("PUT status") == 0
    until(lambda: "promoted" in served.log)
    os.kill(new, signal.SIGTERM)
    registry.wait_until_gone()


@pytest.mark.parametrize("how", [{"more": LINE}, {"conf": CONF}], ids=["line", "conf"])
def test_workers_of_gevent_register_like_others(
    how: dict[str, str], registry: RegistryServer, start: Start
) -> None:
    conf = "worker_class = 'gevent'\n" + how.get("conf", "")
    served = start(registry.env(), how.get("more", ""), conf=conf, workers=2)
    registry.wait_until("UP")
    registry.wait_for("POST heartbeat", 2)
    assert serves(served)
    assert registry.count("POST register") == 1
    served.stop()
    registry.wait_until_gone()


def test_a_server_of_one_process_drains_and_is_gone(registry: RegistryServer, start: Start) -> None:
    served = start(registry.env(), LINE + ALONE, alone=True)
    registry.wait_until("UP")
    served_when: list[tuple[str, bool]] = []
    registry.when = lambda asked: served_when.append((asked.what, serves(served)))
    served.signal(signal.SIGTERM)
    assert served.process.wait(25) == -signal.SIGTERM
    told = [(what, served) for what, served in served_when if what != "POST heartbeat"]
    assert told == [("PUT status", True), ("DELETE register", True)]


def test_a_server_that_is_ended_while_it_registers_is_gone_too(
    registry: RegistryServer, start: Start
) -> None:
    runs = Event()
    services: list[Served] = []

    def end(asked: Asked) -> None:  # it is registered, and does not know yet
        if asked.what == "POST register" and runs.wait(30):
            services[0].signal(signal.SIGTERM)

    registry.when = end
    services.append(start(registry.env(), LINE + ALONE, alone=True))
    runs.set()
    assert services[0].process.wait(25) == -signal.SIGTERM
    assert registry.count("POST register") == registry.count("DELETE register") == 1
    assert registry.instances() == ()


def test_the_second_sigterm_is_not_put_off(registry: RegistryServer, start: Start) -> None:
    slow = LINE.replace("drain=0.5", "drain=300")
    served = start(registry.env(), slow + ALONE, alone=True)
    registry.wait_until("UP")
    served.signal(signal.SIGTERM)
    registry.wait_until("DRAINING")
    served.signal(signal.SIGTERM)
    assert served.process.wait(25) == -signal.SIGTERM


def test_a_server_that_ends_by_itself_leaves_at_exit(
    registry: RegistryServer, start: Start
) -> None:
    served = start(registry.env(), LINE + ALONE, alone=True)
    registry.wait_until("UP")
    served.signal(signal.SIGINT)
    served.process.wait(25)
    assert registry.instances() == ()


def test_a_process_that_only_loads_the_module_registers_nothing(
    registry: RegistryServer, start: Start, tmp_path: Path
) -> None:
    start(registry.env(), LINE)
    registry.wait_until("UP")
    wait = "import app, threading; threading.Event().wait(1)"
    subprocess.run(
        [sys.executable, "-c", wait],
        cwd=tmp_path,
        env={**os.environ, **home(tmp_path), **registry.env()},
        check=True,
    )
    assert registry.count("POST register") == 1
    assert registry.count("DELETE register") == 0


def test_a_service_starts_without_its_registry_and_registers_when_there_is_one(
    start: Start,
) -> None:
    registry = RegistryServer()
    served = start(registry.env(), LINE)
    assert serves(served)
    until(lambda: "the connection was" in served.log)
    with registry:
        registry.wait_until("UP")
        assert serves(served)


def test_a_registry_that_began_anew_gets_its_instances_back(
    registry: RegistryServer, start: Start
) -> None:
    served = start(registry.env(), conf=CONF)
    registry.wait_until("UP")
    registry.stop()
    until(lambda: "the connection was" in served.log)
    registry.start()
    assert registry.wait_until("UP").tags == ("blue",)
    assert Asked("POST heartbeat", 404) in registry.asked


def test_a_registry_that_never_answers_does_not_delay_the_service(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        served = start({"REGISTRY_URL": url}, LINE)
        assert serves(served)
        until(lambda: "no answer in time" in served.log)
        assert serves(served)
        served.stop()


def test_the_next_registry_is_used_when_one_is_down(registry: RegistryServer, start: Start) -> None:
    away = RegistryServer()
    served = start({**registry.env(), "REGISTRY_URL": f"{away.url}, {registry.url}"}, LINE)
    registry.wait_until("UP")
    registry.stop()
    with away:
        away.wait_until("UP")
        served.stop()
        away.wait_until_gone()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"REGISTRY_TOKEN": "a-token-of-nobody"}, "status 401"),
        ({"REGISTRY_TOKEN": "two words of a secret"}, "REGISTRY_TOKEN must be 1 to 4096 visible"),
        ({"REGISTRY_URL": "http://me:secret-word@127.0.0.1"}, "must not carry credentials"),
    ],
)
def test_a_wrong_environment_is_logged_and_the_service_runs(
    env: dict[str, str], said: str, registry: RegistryServer, start: Start
) -> None:
    served = start(registry.env() | env, LINE)
    assert serves(served)
    until(lambda: said in served.log)
    served.stop()
    assert registry.instances() == ()
    for secret in (*env.values(), TOKEN, "secret-word"):
        assert secret not in served.log


def test_wrong_settings_of_gunicorn_are_logged_and_the_service_runs(
    registry: RegistryServer, start: Start
) -> None:
    served = start(registry.env(), conf=CONF.replace('"users"', '"no name"'))
    assert serves(served)
    until(lambda: "Registration not started: serviceName" in served.log)
    served.stop()


def test_hooks_of_the_users_own_are_called_besides(registry: RegistryServer, start: Start) -> None:
    names = ("post_worker_init", "when_ready", "on_reload", "on_exit")
    hooks = "".join(f"def own_{name}(_): print('own {name}', flush=True)\n" for name in names)
    given = ", ".join(f"{name}=own_{name}" for name in names)
    served = start(registry.env(), conf=hooks + CONF.replace("drain", f"{given}, drain"))
    registry.wait_until("UP")
    served.signal(signal.SIGHUP)
    until(lambda: "own on_reload" in served.log)
    served.stop()
    for name in names:
        assert f"own {name}" in served.log


def test_a_forked_child_does_not_deregister_the_service(
    registry: RegistryServer, start: Start
) -> None:
    """A child that is forked off a server, as by multiprocessing, ends without a word."""
    fork = """
import threading
def fork():
    threading.Event().wait(1)
    pid = os.fork()
    if not pid:
        import atexit
        atexit._run_exitfuncs()
        os._exit(0)
    os.waitpid(pid, 0)
    print("the child has ended", flush=True)
threading.Thread(target=fork, daemon=True).start()
"""
    served = start(registry.env(), LINE + fork + ALONE, alone=True)
    registry.wait_until("UP")
    until(lambda: "the child has ended" in served.log)
    assert registry.count("DELETE register") == 0


def test_a_worker_that_was_sent_sigterm_does_not_take_over(
    registry: RegistryServer, start: Start, tmp_path: Path
) -> None:
    """It may have requests to finish for long after the service has left."""
    registry.when = lambda asked: (tmp_path / "registered").touch()
    worker = """
import signal, threading, time
from wsgigate import Registration

def named():
    return [thread.name for thread in threading.enumerate()]

def work(number):
    signal.signal(signal.SIGTERM, lambda *_: None)
    Registration("users", port=int(os.environ["PORT"]), listens=0).start(leaves=False)
    open(f"runs-{number}", "w").close()
    while "wsgigate-registration" in named():
        time.sleep(0.02)
    print("retired", number, flush=True)
    time.sleep(60)

workers = []
for number in range(2):
    workers.append(os.fork())
    if workers[-1] == 0:
        work(number)
    while not (os.path.exists("registered") and os.path.exists(f"runs-{number}")):
        time.sleep(0.02)
print("workers", *workers, flush=True)
"""
    served = start(registry.env(), worker + ALONE, alone=True)
    leader, other = map(int, until(lambda: re.findall(r"workers (\d+) (\d+)", served.log))[0])
    registry.wait_until("UP")
    for number, pid in ((1, other), (0, leader)):
        os.kill(pid, signal.SIGTERM)
        until(lambda said=f"retired {number}": said in served.log)
    assert registry.count("POST register") == 1
    assert registry.count("DELETE register") == 0
