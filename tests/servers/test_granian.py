"""Signals to a worker of granian that arrive before granian handles signals."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, threading
from wsgigate.servers.granian import deferred_signals

class Main:
    interrupt_signal = False

    def interrupt(self, *_):
        self.interrupt_signal = True

main = Main()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, main.interrupt)
when, number = sys.argv[1], getattr(signal, sys.argv[2])
if when == "before":
    os.kill(os.getpid(), number)
with deferred_signals():
    if when == "meanwhile":
        os.kill(os.getpid(), number)

def heard(number, _):
    print(signal.Signals(number).name, flush=True)
    os._exit(0)

[boot] = [each for each in threading.enumerate() if each.name == "granian-boot"]
for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, heard)
boot.join(20)
print("quiet" if not boot.is_alive() else "still there", flush=True)
"""


@pytest.mark.parametrize(
    ("when", "number", "printed"),
    [
        ("before", "SIGTERM", "SIGTERM"),
        ("meanwhile", "SIGTERM", "SIGTERM"),
        ("meanwhile", "SIGINT", "SIGINT"),
        ("never", "SIGTERM", "quiet"),
    ],
)
def test_an_early_signal_is_handled_later(when: str, number: str, printed: str) -> None:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, when, number]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == ([printed], "")


def test_where_there_can_be_no_handlers_nothing_is_done() -> None:
    text = """
import signal, threading
from wsgigate.servers.granian import deferred_signals

before = signal.getsignal(signal.SIGTERM)

def load():
    with deferred_signals():
        print(signal.getsignal(signal.SIGTERM) == before)

thread = threading.Thread(target=load)
thread.start()
thread.join()
print(threading.active_count())
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "1"]


ENDING = """
import os, signal, sys, threading, time
from wsgigate.servers.granian import call_on_stop_signal

ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGUSR1, lambda *_: None)
call_on_stop_signal(ended.set)
os.kill(os.getpid(), signal.SIGUSR1)
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
os.waitpid(child, 0)
print(ended.wait(0.5))
os.kill(os.getpid(), signal.SIGTERM)
print(ended.wait(20))
"""


def test_the_app_is_notified_that_the_process_ends() -> None:
    command = [sys.executable, "-W", "error", "-c", ENDING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["False", "True"], "")
