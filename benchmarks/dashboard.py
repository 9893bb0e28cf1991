"""What open dashboards cost: the processor time of a gateway while N browsers poll it.

    .venv/bin/python -m benchmarks.dashboard [--browsers 10] [--seconds 20]

A browser is a thread that asks for what the page asks for, every two seconds, with the tags that it
has. The figure is the processor time of all workers, less what they take without a browser.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from itertools import count
from pathlib import Path

import requests

from tests.support.ports import free_port
from tests.support.servers import Served, Servers, home

TOKEN = "a-token-of-a-viewer-of-the-dashboard"
OFTEN = (
    *("overview", "instances", "health", "circuit-breakers", "errors"),
    "history?since={since}&of=gateway",
)
SELDOM = ("session", "workers", "maintenance", "routes", "config", "registered")
"""What a page asks for every ten seconds."""

FILE = """
[gateway]
[store]
url = "lmdb:{folder}/store"
[admin]
viewer_token = "{token}"
"""
SERVICE = """
[services.service{number}]
instances = ["http://127.0.0.1:1", "http://127.0.0.2:1"]
breaker = {{}}
[[routes]]
path = "/{number}"
service = "service{number}"
"""


def browse(url: str, stop: threading.Event) -> None:
    """Poll as a page does."""
    tags: dict[str, str] = {}
    since = 0.0
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {TOKEN}"
        for number in count():
            if stop.wait(2.0):
                return
            for path in OFTEN if number % 5 else (*OFTEN, *SELDOM):
                name = path.format(since=since)
                tag = {"If-None-Match": tags[name]} if name in tags else {}
                answer = session.get(f"{url}/_gateway/{name}", headers=tag, timeout=10)
                if "ETag" in answer.headers:
                    tags[name] = answer.headers["ETag"]
                if path.startswith("history") and answer.status_code == 200:
                    since = max([since, *answer.json()["times"]])


def used(served: Served) -> float:
    """Return the processor time of all workers, in seconds."""
    ticks = 0
    for worker in served.workers(2):
        fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--browsers", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Servers() as servers:
        file = Path(folder) / "gateway.toml"
        services = "".join(SERVICE.format(number=number) for number in range(10))
        file.write_text(FILE.format(folder=folder, token=TOKEN) + services)
        port = free_port()
        command = [sys.executable, "-m", "wsgigate", "run", str(file), "--workers", "2"]
        command += ["--bind", f"127.0.0.1:{port}"]
        served = servers.start(command, Path(folder) / "log", home(Path(folder)), port=port)
        requests.get(f"{served.url}/_gateway/health", timeout=10)
        for browsers in (0, given.browsers):
            stop = threading.Event()
            threads = [
                threading.Thread(target=browse, args=(served.url, stop)) for _ in range(browsers)
            ]
            for thread in threads:
                thread.start()
            time.sleep(3.0)  # the first polls, which have no tags
            before = used(served)
            time.sleep(given.seconds)
            share = (used(served) - before) / given.seconds
            stop.set()
            for thread in threads:
                thread.join()
            print(f"{browsers:3} browsers: {100 * share:.1f} % of a processor")


if __name__ == "__main__":
    main()
