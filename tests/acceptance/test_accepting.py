"""How the workers of a gateway share the connections of a burst."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tests.acceptance.attackers import HEAD
from tests.acceptance.test_rolling_restart import is_stopped
from tests.support.waiting import until

WORKERS = 3
THREADS = 2

APP = """
import os, threading
from wsgigate.servers import gunicorn_loop
from wsgigate.servers.gunicorn_worker import GateWorker

gunicorn_loop.TURN = 600.0  # no worker accepts what was left to the others

class Patient(GateWorker):
    def turn(self):
        return 0.002  # but it looks as often as ever whether a thread is free

def app(environ, start_response):
    if environ["PATH_INFO"] == "/held":
        os.write(2, b"held by %d\\n" % os.getpid())  # at once: threads write no line into another
        threading.Event().wait(60)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def test_of_a_burst_each_worker_accepts_what_its_threads_can_serve(
    serve_app: Callable[..., Any],
) -> None:
    """The first worker that runs finds all connections, and no other worker runs yet."""
    options = ("--threads", str(THREADS), "--workers", str(WORKERS), "--graceful-timeout", "1")
    server = serve_app(APP, "--worker-class", "served0.Patient", *options)
    processes = server.workers(WORKERS)
    until(lambda: server.log.count("Booting worker") == WORKERS)
    with ExitStack() as stack:
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        for process in processes:
            until(lambda process=process: is_stopped(process))
        for _ in range(WORKERS * THREADS):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            stack.enter_context(client).sendall(b"GET /held" + HEAD + b"\r\n")
        for number, process in enumerate(processes, 1):
            os.kill(process, signal.SIGCONT)
            until(lambda number=number: len(holders(server.log)) == number * THREADS)
        assert Counter(holders(server.log)) == dict.fromkeys(processes, THREADS)


def holders(log: str) -> list[int]:
    """Return the process of each request that is held."""
    return [int(process) for process in re.findall(r"held by (\d+)\n", log)]
