"""The command register: programs of all kinds, their signals, and their ends."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.acceptance.registries import TOKEN, RegistryServer
from tests.support.ports import free_port
from tests.support.servers import home
from tests.support.waiting import until
from wsgigate.cli.register import CHECK_INTERVAL

SERVER = """\
import http.server, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
while {wait!r} and not __import__("os").path.exists({wait!r}):
    time.sleep(0.02)
print("listens", flush=True)
http.server.HTTPServer(("127.0.0.1", {port}), http.server.SimpleHTTPRequestHandler).serve_forever()
"""

NOTED = """\
import signal, sys
def note(number, frame):
    print(signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM:
        sys.exit(0)
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, note)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with RegistryServer() as server:
        yield server


class Registered:
    """``wsgigate register`` with a program."""

    def __init__(
        self, folder: Path, registry: RegistryServer, program: list[str], *options: str, port: int
    ) -> None:
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                register(port, program, *options),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **home(folder), **registry.env()},
            )

    def told(self) -> list[str]:
        return self.output.read_text().splitlines()

    def wait_to_hear(self, line: str) -> None:
        until(lambda: line in self.told())

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def ends_with(self) -> int:
        return self.process.wait(60)

    def clean(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(60)


def register(port: int, program: list[str], *options: str) -> list[str]:
    command = [sys.executable, "-m", "wsgigate", "register", "--service", "users"]
    return [*command, "--port", str(port), *options, "--", *program]


SERVES = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]

Run = Callable[..., Registered]


@pytest.fixture
def run(tmp_path: Path, registry: RegistryServer) -> Iterator[Run]:
    started: list[Registered] = []

    def begin(program: list[str], *options: str, port: int = 0) -> Registered:
        registered = Registered(tmp_path, registry, program, *options, port=port or free_port())
        started.append(registered)
        return registered

    yield begin
    for registered in started:
        registered.clean()


def server(port: int, wait: str = "") -> list[str]:
    return [sys.executable, "-c", SERVER.format(port=port, wait=wait)]


def test_from_its_start_to_its_end(run: Run, registry: RegistryServer, tmp_path: Path) -> None:
    port = free_port()
    program = run(
        server(port, str(tmp_path / "go")),
        *("--health-check-path", "/health", "--weight", "3", "--zone", "a", "--tag", "blue"),
        *("--tag", "new", "--meta", "team=shop", "--meta", "x=a=b", "--service-version", "1.2"),
        *("--drain", "300ms", "--instance-id", "users-1"),
        port=port,
    )
    registry.wait_until("STARTING")
    (tmp_path / "go").touch()
    instance = registry.wait_until("UP")
    assert (instance.host, instance.port, instance.instance_id) == ("127.0.0.1", port, "users-1")
    assert (instance.weight, instance.zone, instance.version) == (3, "a", "1.2")
    assert (instance.tags, instance.health_check_path) == (("blue", "new"), "/health")
    assert instance.metadata == {"team": "shop", "x": "a=b"}
    assert registry.count("POST register") == 1
    registry.wait_for("POST heartbeat", 2)
    alive: list[bool] = []
    registry.when = lambda asked: alive.append(program.process.poll() is None)
    program.send(signal.SIGTERM)
    assert program.ends_with() == 3
    assert registry.instances() == ()
    changes = [each.what for each in registry.asked if each.what != "POST heartbeat"]
    assert changes == ["POST register", "PUT status", "PUT status", "DELETE register"]
    assert alive == [True] * len(alive)
    assert TOKEN not in program.output.read_text()


def test_the_program_serves_while_it_drains(run: Run, registry: RegistryServer) -> None:
    port = free_port()
    program = run(server(port), "--drain", "300s", port=port)
    registry.wait_until("UP")
    program.send(signal.SIGTERM)
    registry.wait_until("DRAINING")
    with urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
        assert answer.status == 200
    program.send(signal.SIGTERM)
    assert program.ends_with() == 3
    assert registry.instances() == ()


@pytest.mark.parametrize("drain", ["0s", "5m"])
def test_a_program_without_drain_ends_at_once(
    drain: str, run: Run, registry: RegistryServer
) -> None:
    port = free_port()
    program = run(server(port), "--drain", drain, port=port)
    registry.wait_until("UP")
    if drain != "0s":
        registry.stop()  # nobody can be told
    program.send(signal.SIGTERM)
    assert program.ends_with() == 3


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)],
)
def test_the_exit_code_is_the_programs(
    script: str, code: int, run: Run, registry: RegistryServer
) -> None:
    assert run(["sh", "-c", script]).ends_with() == code
    assert registry.instances() == ()


def test_a_program_that_dies_is_deregistered(run: Run, registry: RegistryServer) -> None:
    port = free_port()
    program = run(["sh", "-c", f"echo $$; exec {sys.executable} -m http.server {port}"], port=port)
    registry.wait_until("UP")
    os.kill(int(program.told()[0]), signal.SIGKILL)
    assert program.ends_with() == 137
    assert registry.instances() == ()
    assert registry.count("PUT status") == 1


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        (["./no-such-program"], 127, "wsgigate: ./no-such-program: No such file or directory"),
        (["/"], 126, "wsgigate: /: Permission denied"),
    ],
)
def test_a_program_that_cannot_be_run_is_never_registered(
    program: list[str], code: int, said: str, run: Run, registry: RegistryServer
) -> None:
    registered = run(program)
    assert registered.ends_with() == code
    assert registered.told() == [said]
    assert registry.asked == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--meta", "x"], "--meta: expected NAME=VALUE"),
        (["--drain", "soon"], "soon"),
        (["--weight", "-1"], "weight: "),
        (["--health-check-path", "health"], "healthCheckPath: "),
        (["--registry", "registry:3004"], "http://HOST:PORT"),
    ],
)
def test_invalid_options_are_named_and_nothing_is_run(
    options: list[str], said: str, run: Run, registry: RegistryServer, tmp_path: Path
) -> None:
    registered = run(["touch", "it-ran"], *options)
    assert registered.ends_with() == 2
    assert said in registered.output.read_text()
    assert not (tmp_path / "it-ran").exists()


def test_a_command_without_a_program_is_rejected(run: Run) -> None:
    registered = run([])
    assert registered.ends_with() == 2
    assert "a program to run is required" in registered.output.read_text()


def test_signals_reach_the_program_once(run: Run, registry: RegistryServer) -> None:
    program = run([sys.executable, "-c", NOTED])
    program.wait_to_hear("ready")
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT"):
        program.send(signal.Signals[name])
        program.wait_to_hear(name)
    program.send(signal.SIGTERM)  # its port takes no connections: there is nothing to drain
    assert program.ends_with() == 0
    heard = [line for line in program.told() if line.startswith("SIG")]
    assert heard == ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGTERM"]


def test_a_suspended_program_resumes(run: Run, registry: RegistryServer) -> None:
    """Stopped past the end of a wait, and interrupted by SIGCONT: no signal is made up of that."""
    program = run([sys.executable, "-c", NOTED])
    program.wait_to_hear("ready")
    program.send(signal.SIGUSR1)
    program.wait_to_hear("SIGUSR1")
    for _ in range(5):
        program.send(signal.SIGSTOP)
        time.sleep(2 * CHECK_INTERVAL)
        program.send(signal.SIGCONT)
        time.sleep(CHECK_INTERVAL / 2)
    assert program.process.poll() is None, program.told()
    registry.wait_for("POST heartbeat", registry.count("POST heartbeat") + 1)
    program.send(signal.SIGTERM)
    assert program.ends_with() == 0
    heard = [line for line in program.told() if line.startswith("SIG")]
    assert heard == ["SIGUSR1", "SIGTERM"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_no_program_outlives_it(number: signal.Signals, run: Run, registry: RegistryServer) -> None:
    port = free_port()
    program = run(["sh", "-c", f'echo $$; exec "$@" {port}', "-", *SERVES], port=port)
    registry.wait_until("UP")
    program.send(number)
    assert program.ends_with() == -number
    until(lambda: not Path(f"/proc/{program.told()[0]}").exists())
    with pytest.raises(OSError, match="refused"):
        urlopen(f"http://127.0.0.1:{port}/", timeout=30)


def test_the_program_starts_as_if_it_were_not_for_us(run: Run, registry: RegistryServer) -> None:
    """No signal is blocked or ignored that was not before."""
    status = ["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"]
    direct = subprocess.check_output(status, text=True)
    program = run(status)
    assert program.ends_with() == 0
    assert [line for line in program.told() if line.startswith("Sig")] == direct.splitlines()


def test_what_a_terminal_sends_to_both_is_not_passed_on(
    registry: RegistryServer, tmp_path: Path
) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.environ.update(home(tmp_path) | registry.env())
        command = register(free_port(), [sys.executable, "-c", NOTED])
        os.execv(command[0], command)
    heard = b""
    while b"ready" not in heard:
        heard += os.read(terminal, 1024)
    os.write(terminal, b"\x03")
    while b"SIGINT" not in heard:
        heard += os.read(terminal, 1024)
    os.kill(pid, signal.SIGTERM)
    while True:
        try:
            heard += os.read(terminal, 1024)
        except OSError:  # its other end is closed
            break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    assert heard.count(b"SIGINT") == 1


def test_what_the_program_leaves_behind_is_buried(registry: RegistryServer) -> None:
    """As process 1 of a container, which the orphans of all others come to."""
    become_parent = "import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)"  # subreaper
    orphans = "for i in 1 2 3; do (sleep 0.1 & echo orphan $!); done; echo ready; sleep 300"
    command = register(free_port(), ["sh", "-c", orphans])
    code = f"{become_parent}; import os; os.execv({command[0]!r}, {command!r})"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, **registry.env()},
        text=True,
        start_new_session=True,
    ) as first:
        lines = [first.stdout.readline() for _ in range(4)]
        pids = [line.split()[1] for line in lines if line.startswith("orphan")]
        assert len(pids) == 3
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        assert first.poll() is None
        first.terminate()
        assert first.wait(20) == 143


def test_pipes_end_a_program_as_ever(run: Run, registry: RegistryServer) -> None:
    assert run(["sh", "-c", "yes | head -n 1; echo done"]).ends_with() == 0
    assert run(["sh", "-c", "kill -PIPE $$"]).ends_with() == 128 + signal.SIGPIPE


def test_a_program_is_run_though_there_is_no_registry(run: Run, registry: RegistryServer) -> None:
    registry.stop()
    port = free_port()
    program = run(server(port), port=port)
    program.wait_to_hear("listens")
    until(lambda: any("the connection was" in line for line in program.told()))
    program.send(signal.SIGTERM)
    assert program.ends_with() == 3
