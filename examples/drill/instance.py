"""One instance of the service: answers, and keeps a journal of its requests.

The journal has one line for each request, written before the answer: the time, the method, the
request's id and the status. It is in the file the moment the line is written, so it is whole even
when the process is killed. All instances and the drill share a clock, that of the machine.

SIGUSR1 makes it answer 500 to all but ``/health``, as an instance does whose database is gone;
SIGUSR2 makes it well again.

    python instance.py NAME PORT JOURNAL
"""

from __future__ import annotations

import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType

WORK = 0.005
"""Seconds that a request takes, so that some are under way whenever the instance is killed."""


class Instance(ThreadingHTTPServer):
    """The server, with a thread for each connection.

    :param journal: The file that lines are added to.
    """

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, name: str, port: int, journal: str) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.name = name
        self.status = 200
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, method: str, id: str, status: int) -> None:
        """Add a line to the journal, in one go."""
        os.write(self._journal, f"{time.monotonic():.6f} {method} {id} {status}\n".encode())

    def on_signal(self, number: int, _: FrameType | None) -> None:
        self.status = 500 if number == signal.SIGUSR1 else 200


class Handler(BaseHTTPRequestHandler):
    server: Instance
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave together
    timeout = 300

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(200)
        else:
            self._work(self.path.rpartition("/")[2])

    def do_POST(self) -> None:
        self._work(self.rfile.read(int(self.headers["Content-Length"])).decode())

    def _work(self, id: str) -> None:
        status = self.server.status
        self.server.note(self.command, id, status)  # from here on it is processed
        time.sleep(WORK)
        self._answer(status)

    def _answer(self, status: int) -> None:
        body = f"{self.server.name}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Instance", self.server.name)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: there is the journal."""

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client has left meanwhile
            pass

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:
            pass


def main(name: str, port: str, journal: str) -> None:
    instance = Instance(name, int(port), journal)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, instance.on_signal)
    instance.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
