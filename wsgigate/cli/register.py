"""The command register: run a program and keep it registered while it runs.

Theory of operation. Three rules must hold:

- One loop handles all signals, one at a time, and only signals that were sent. They are blocked in
  every thread, and the loop receives them by ``sigwaitinfo``; its timeout is an interval timer,
  whose SIGALRM is one of the signals. ``sigtimedwait`` would not require the timer, but CPython
  returns an uninitialised structure when that call is interrupted after its deadline, for example
  by SIGCONT: a signal that was never sent.
- The program does not outlive this process. An error here terminates the program; when this process
  is killed (SIGKILL), the kernel terminates the program by a parent-death signal, where the system
  has one (Linux). That signal is bound to the thread that forked, so the main thread forks, which
  lives as long as the process.
- The program starts as if it had been started directly: with the signal mask, the ignored signals
  and the file descriptors that this process was started with.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from wsgigate.cli.main import failed
from wsgigate.registration import AT_MOST, connector
from wsgigate.registration.entry import Entry
from wsgigate.registration.heartbeat import Heartbeat
from wsgigate.registration.process import accepts
from wsgigate.rules.registration import Wanted
from wsgigate.units import parse_duration

__all__ = ["register"]

CHECK_INTERVAL = 0.1
"""Seconds between two checks whether the program accepts connections."""

_FROM_KERNEL = 0x80  # SI_KERNEL: a key pressed at the terminal, which all of its programs get

_FORWARDED = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH),
)
_HANDLED = {*_FORWARDED, signal.SIGCHLD, signal.SIGALRM}
_OWN_SIGNALS = (signal.SIGCHLD, signal.SIGALRM)

_PR_SET_PDEATHSIG = 1


def register(arguments: argparse.Namespace) -> int:
    """Run a program and keep it registered while it runs; return its exit code."""
    command: list[str] = arguments.program
    if command[:1] == ["--"]:
        command = command[1:]
    try:
        if not hasattr(signal, "sigwaitinfo"):
            raise ValueError("register requires a system with sigwaitinfo(2), such as Linux")
        if not command:
            raise ValueError("a program to run is required: wsgigate register ... -- PROGRAM")
        drain = parse_duration(arguments.drain)
        entry = _entry(arguments)
        connect = connector(entry, arguments.registry or None, ca=arguments.ca)
    except ValueError as error:
        return failed(error)
    _log_to_stderr()
    # blocked before another thread starts, so that all signals are delivered to the loop
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # while SIGCHLD is ignored, children cannot be waited for
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        program = _started(command, before)
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        code = 127 if error.errno == errno.ENOENT else 126
        return failed(f"{command[0]}: {error.strerror}", code)
    heartbeat = Heartbeat(connect, wanted=Wanted.STARTING)
    port = entry.port if arguments.listens is None else arguments.listens
    places = [("127.0.0.1", port), (entry.host or "::1", port)]
    watch = _Supervisor(program, heartbeat, places, drain)
    try:
        heartbeat.start()
        return watch.wait()
    finally:
        watch.end()
        heartbeat.end(leave=True, timeout=AT_MOST)


def _started(command: list[str], mask: Iterable[int]) -> subprocess.Popen[bytes]:
    """Start *command* with the signal mask *mask*; it gets SIGTERM when this process dies.

    :raises OSError: It cannot be run.
    """
    parent, die_with_parent = os.getpid(), _parent_death_signal()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if die_with_parent is not None:
            die_with_parent()
            if os.getppid() != parent:  # the parent died before the signal was set up
                os._exit(128 + signal.SIGTERM)

    # This is the only thread, so the fork is safe, and Python code may run before the program.
    return subprocess.Popen(command, preexec_fn=prepare, close_fds=False)  # noqa: S603


def _parent_death_signal() -> Callable[[], object] | None:
    """Return a function that sets SIGTERM as the caller's parent-death signal, if possible."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):  # a Python without ctypes, a libc without it
        return None
    number = [ctypes.c_ulong(each) for each in (signal.SIGTERM, 0, 0, 0)]
    return lambda: prctl(_PR_SET_PDEATHSIG, *number)


def _entry(arguments: argparse.Namespace) -> Entry:
    metadata = {}
    for given in arguments.meta:
        name, equals, value = given.partition("=")
        if not name or not equals:
            raise ValueError(f"--meta: expected NAME=VALUE, got {given!r}")
        metadata[name] = value
    return Entry(
        service=arguments.service,
        port=arguments.port,
        host=arguments.host,
        instance_id=arguments.instance_id,
        scheme=arguments.scheme,
        weight=arguments.weight,
        version=arguments.service_version,
        zone=arguments.zone,
        tags=tuple(arguments.tag),
        metadata=metadata,
        health_check_path=arguments.health_check_path,
    )


class _Supervisor:
    """Supervises the program: forwards signals, reports its status, and returns its exit code."""

    def __init__(
        self,
        program: subprocess.Popen[bytes],
        heartbeat: Heartbeat,
        places: Sequence[tuple[str, int]],
        drain: float,
    ) -> None:
        self._program = program
        self._pid = program.pid
        self._heartbeat = heartbeat
        self._places = places
        self._drain = drain
        self._up = False
        self._drains_until: float | None = None  # deadline for the registry to learn that it drains
        self._terminate_at: float | None = None  # when the program gets SIGTERM

    def wait(self) -> int:
        """Wait for the program; return its exit code, as a shell reports it."""
        while (code := self._reaped()) is None:
            if not self._up:
                self._check_port()
            self._continue_draining()
            busy = not self._up or self._drains_until is not None or self._terminate_at is not None
            signal.setitimer(signal.ITIMER_REAL, CHECK_INTERVAL if busy else 60.0)
            self._handle(signal.sigwaitinfo(_HANDLED))
        return code

    def end(self) -> None:
        """Terminate the program if it still runs, after an error in this process."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._program.returncode is None:
            os.kill(self._pid, signal.SIGTERM)

    def _reaped(self) -> int | None:
        """Return the exit code if the program has exited; reap all orphaned children."""
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return None
            if pid == self._pid:
                code = self._program.returncode = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code

    def _check_port(self) -> None:
        if any(accepts(*place) for place in self._places):
            self._up = True
            self._heartbeat.want(Wanted.UP)

    def _handle(self, info: signal.struct_siginfo) -> None:
        if info.si_signo in _OWN_SIGNALS:
            return
        if info.si_signo != signal.SIGTERM:
            if info.si_code != _FROM_KERNEL:
                os.kill(self._pid, info.si_signo)
            return
        waits = self._drains_until is not None or self._terminate_at is not None
        if waits or not (self._up and self._drain):
            self._drains_until = None
            self._terminate_at = time.monotonic()
        else:
            self._drains_until = time.monotonic() + AT_MOST
            self._heartbeat.want(Wanted.DRAINING)

    def _continue_draining(self) -> None:
        """Send SIGTERM to the program once gateways have had time to see that it drains."""
        now = time.monotonic()
        if self._drains_until is not None and (
            self._heartbeat.settled(0) or now >= self._drains_until
        ):
            self._drains_until, self._terminate_at = (
                None,
                now + self._drain * self._heartbeat.drains,
            )
        if self._terminate_at is not None and now >= self._terminate_at:
            self._terminate_at = None
            os.kill(self._pid, signal.SIGTERM)


def _log_to_stderr() -> None:
    logger = logging.getLogger("wsgigate.registration")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("wsgigate: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
