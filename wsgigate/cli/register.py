"""The command register: a program in any language, known to a registry for as long as it runs.

Three things must hold:

- The signals come to one loop, in turn, and none is made up. They are blocked in every thread, and
  the loop takes them by ``sigwaitinfo``; its timeout is an interval timer, whose SIGALRM is one of
  them. ``sigtimedwait`` would do without the timer, but CPython returns an uninitialised structure
  when that is interrupted after its deadline, as by SIGCONT: a signal that was never sent.
- The program does not outlive this process. An error here ends it; for a death that cannot be
  noticed here (SIGKILL) the kernel ends it, where there is a parent-death signal (Linux). That
  belongs to the thread that forked, so the main thread forks, which lives as long as the process.
- The program begins as if it had been started without us: its signal mask, the signals that Python
  ignores, and the descriptors that were handed to this process.
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
from wsgigate.registration import AT_MOST
from wsgigate.registration.connect import connector
from wsgigate.registration.entry import Entry
from wsgigate.registration.heartbeat import Keeper
from wsgigate.registration.process import accepts
from wsgigate.rules.registration import Wanted
from wsgigate.units import parse_duration

__all__ = ["register"]

LOOK = 0.1
"""Seconds between two looks whether the program takes connections."""

_FROM_KERNEL = 0x80  # SI_KERNEL: a key pressed at the terminal, which all of its programs get

_FORWARDED = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH),
)
_HEEDED = {*_FORWARDED, signal.SIGCHLD, signal.SIGALRM}
_OURS = (signal.SIGCHLD, signal.SIGALRM)

_PR_SET_PDEATHSIG = 1


def register(arguments: argparse.Namespace) -> int:
    """Run a program, and keep it registered meanwhile; return its exit code."""
    command: list[str] = arguments.program
    if command[:1] == ["--"]:
        command = command[1:]
    try:
        if not hasattr(signal, "sigwaitinfo"):
            raise ValueError("register needs a system that has sigwaitinfo(2), such as Linux")
        if not command:
            raise ValueError("the program to run is missing: wsgigate register ... -- PROGRAM")
        drain = parse_duration(arguments.drain)
        entry = _entry(arguments)
        connect = connector(entry, arguments.registry or None, ca=arguments.ca)
    except ValueError as error:
        return failed(error)
    _log_to_stderr()
    # blocked before there is another thread, so that all of them come to the loop, in turn
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who ignores it has no children to wait for
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
    try:
        program = _started(command, before)
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        code = 127 if error.errno == errno.ENOENT else 126
        return failed(f"{command[0]}: {error.strerror}", code)
    keeper = Keeper(connect, wanted=Wanted.STARTING)
    port = entry.port if arguments.listens is None else arguments.listens
    places = [("127.0.0.1", port), (entry.host or "::1", port)]
    watch = _Watch(program, keeper, places, drain)
    try:
        keeper.start()
        return watch.wait()
    finally:
        watch.end()
        keeper.end(leave=True, timeout=AT_MOST)


def _started(command: list[str], mask: Iterable[int]) -> subprocess.Popen[bytes]:
    """Start *command* with the signal mask *mask*; it gets SIGTERM when this process dies.

    :raises OSError: It cannot be run.
    """
    parent, die_with_parent = os.getpid(), _parent_death_signal()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if die_with_parent is not None:
            die_with_parent()
            if os.getppid() != parent:  # which died before it was asked for
                os._exit(128 + signal.SIGTERM)

    # The only thread is this one, so that a fork is safe, and Python may run before the program.
    return subprocess.Popen(command, preexec_fn=prepare, close_fds=False)  # noqa: S603


def _parent_death_signal() -> Callable[[], object] | None:
    """Return what has the kernel send SIGTERM to the caller when its parent dies, if it can."""
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
            raise ValueError(f"--meta is NAME=VALUE, got {given!r}")
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


class _Watch:
    """The program from its start to its end: its signals pass through here, and its exit code."""

    def __init__(
        self,
        program: subprocess.Popen[bytes],
        keeper: Keeper,
        places: Sequence[tuple[str, int]],
        drain: float,
    ) -> None:
        self._program = program
        self._pid = program.pid
        self._keeper = keeper
        self._places = places
        self._drain = drain
        self._up = False
        self._told_by: float | None = None  # until when the registry is to know that it drains
        self._end_at: float | None = None  # when the program is told to end

    def wait(self) -> int:
        """Return the exit code of the program, as a shell would tell it."""
        while (code := self._reaped()) is None:
            if not self._up:
                self._look()
            self._drain_on()
            busy = not self._up or self._told_by is not None or self._end_at is not None
            signal.setitimer(signal.ITIMER_REAL, LOOK if busy else 60.0)
            self._heed(signal.sigwaitinfo(_HEEDED))
        return code

    def end(self) -> None:
        """Tell the program to end if it has not, whatever kept this process from waiting for it."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._program.returncode is None:
            os.kill(self._pid, signal.SIGTERM)

    def _reaped(self) -> int | None:
        """Return the exit code if the program has ended, and bury what it may have left to us."""
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return None
            if pid == self._pid:
                code = self._program.returncode = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code

    def _look(self) -> None:
        if any(accepts(*place) for place in self._places):
            self._up = True
            self._keeper.want(Wanted.UP)

    def _heed(self, info: signal.struct_siginfo) -> None:
        if info.si_signo in _OURS:
            return
        if info.si_signo != signal.SIGTERM:
            if info.si_code != _FROM_KERNEL:
                os.kill(self._pid, info.si_signo)
            return
        waits = self._told_by is not None or self._end_at is not None
        if waits or not (self._up and self._drain):
            self._told_by = None
            self._end_at = time.monotonic()
        else:
            self._told_by = time.monotonic() + AT_MOST
            self._keeper.want(Wanted.DRAINING)

    def _drain_on(self) -> None:
        """Tell the program to end when gateways have had the time to take note of it."""
        now = time.monotonic()
        if self._told_by is not None and (self._keeper.settled(0) or now >= self._told_by):
            self._told_by, self._end_at = None, now + self._drain * self._keeper.drains
        if self._end_at is not None and now >= self._end_at:
            self._end_at = None
            os.kill(self._pid, signal.SIGTERM)


def _log_to_stderr() -> None:
    logger = logging.getLogger("wsgigate.registration")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("wsgigate: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
