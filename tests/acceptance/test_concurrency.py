"""Requests at a time, counted across real workers, one of which is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter

import requests

from tests.support.waiting import until

APP = """
import os, time
from wsgigate import ConcurrencyLimiter

def inner(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Worker", str(os.getpid()))])
    if environ["PATH_INFO"] == "/long":
        return long()
    time.sleep(0.05)
    return [b"done"]

def long():
    while True:
        yield b"."
        time.sleep(0.05)

app = ConcurrencyLimiter(
    inner, 4, store="lmdb:STORE", lease=4, key=lambda environ: environ["PATH_INFO"]
)
"""


def test_no_more_pass_than_there_are_places_however_many_workers_there_are(serve_app, tmp_path):
    served = serve_app(
        APP.replace("STORE", str(tmp_path / "store")), "--workers", "3", "--threads", "12"
    )
    answers = Counter()

    def work():
        with requests.Session() as session:
            for _ in range(15):
                answer = session.get(served.url, stream=True)
                answers[answer.status_code] += 1
                assert answer.content

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) <= {200, 429}
    held = [requests.get(f"{served.url}/long", stream=True) for _ in range(6)]
    assert sorted(each.status_code for each in held) == [200] * 4 + [429] * 2
    for each in held:
        each.close()
    # the client's leaving is noticed at the next chunk that cannot be sent
    again = until(lambda: _four(served.url))
    for each in again:
        each.close()


def _status(url):
    with requests.get(f"{url}/long", stream=True, timeout=30) as answer:  # which may never end
        return answer.status_code


def _four(url):
    held = [requests.get(f"{url}/long", stream=True) for _ in range(4)]
    if all(each.status_code == 200 for each in held):
        return held
    for each in held:
        each.close()
    return None


def test_the_places_of_a_killed_worker_are_free_after_their_lease_and_no_others(
    serve_app, tmp_path
):
    served = serve_app(
        APP.replace("STORE", str(tmp_path / "store")), "--workers", "2", "--threads", "12"
    )
    held = [requests.get(f"{served.url}/long", stream=True) for _ in range(4)]
    assert [each.status_code for each in held] == [200] * 4
    time.sleep(5)  # longer than a lease: the workers renew
    assert _status(served.url) == 429
    victim = int(held[0].headers["X-Worker"])
    lost = sum(int(each.headers["X-Worker"]) == victim for each in held)
    os.kill(victim, signal.SIGKILL)
    fresh = []

    def all_back():
        answer = requests.get(f"{served.url}/long", stream=True)
        if answer.status_code == 200:
            fresh.append(answer)
        else:
            answer.close()
        return len(fresh) == lost

    until(all_back)
    assert _status(served.url) == 429
    for each in [*held, *fresh]:
        each.close()
