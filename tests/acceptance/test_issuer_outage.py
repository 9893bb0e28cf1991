"""Two workers, an issuer whose keys rotate under load, and endpoints that hang, lie and die."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from operator import ge
from pathlib import Path
from typing import Any

import requests

from tests.acceptance.workers import WHO, Worker, both_workers
from tests.support.issuer import FaultyIssuer, signing_key
from tests.support.waiting import until

Serve = Callable[..., Any]

GATEWAY = """
[gateway]
name = "issuers"
threads = 4
[admin]
[[routes]]
path = "/who"
app = "who_answers:app"
[[routes]]
path = "/"
app = "who_answers:app"
[[routes.middleware]]
use = "authenticator"
issuer = "{url}"
jwks_refresh = "500ms"
jwks_cooldown = "500ms"
"""

FAULTS = ("hang", "flapping", "empty", "close", "older", "html")


class Load:
    """Clients that send valid and invalid tokens all the time, and count the answers."""

    def __init__(self, url: str, issuer: FaultyIssuer) -> None:
        self.url = url
        self.issuer = issuer
        self.answers: dict[str, Counter[int]] = {"valid": Counter(), "invalid": Counter()}
        self.stopping = threading.Event()
        self.announced = [issuer.keys[0]]  # keys that the gateway has had the time to learn
        self.rounds = [0] * 4
        self.threads = [threading.Thread(target=self._run, args=(n,)) for n in range(4)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=60)

    def _run(self, number: int) -> None:
        evil, claims = signing_key("ES256", 66), {"iss": self.issuer.url, "sub": "admin"}
        later = {**claims, "exp": int(time.time()) + 3600}
        with requests.Session() as session:
            session.trust_env = False
            count = 0
            while not self.stopping.is_set():
                count += 1
                time.sleep(0.01)
                key = self.announced[-1]
                self._ask(session, "valid", self.issuer.token(key, jti=f"{number}-{count}"))
                self._ask(session, "invalid", evil.token(later, kid=key.kid))
                self._ask(session, "invalid", key.token({**claims, "exp": 1_000_000_000 + count}))
                self._ask(session, "invalid", evil.token(later, kid=f"{number}-{count}"))
                self.rounds[number] += 1

    def _ask(self, session: requests.Session, kind: str, token: str) -> None:
        fields = {"Authorization": f"Bearer {token}"}
        self.answers[kind][session.get(self.url, headers=fields, timeout=60).status_code] += 1

    def go_on(self, rounds: int) -> None:
        """Wait until each client has made so many rounds with the keys that are announced now.

        Its token of before may be on its way: its key must not be replaced twice meanwhile.
        """
        wanted = [done + 1 + rounds for done in self.rounds]
        until(lambda: all(map(ge, self.rounds, wanted)))


class Caller(Worker):
    """A worker, asked with tokens."""

    def accepts(self, token: str) -> bool:
        return self.get("/", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_no_valid_token_is_rejected_and_no_invalid_one_accepted(
    serve: Serve, tmp_path: Path
) -> None:
    with FaultyIssuer() as issuer:
        issuer.mode = "close"
        (tmp_path / "who_answers.py").write_text(WHO)
        path = {"PYTHONPATH": str(tmp_path)}
        gateway = serve(GATEWAY.format(url=issuer.url), workers=2, env=path)
        workers = both_workers(gateway.url, Caller)
        fields = {"Authorization": f"Bearer {issuer.token()}"}

        def status() -> int:
            return requests.get(gateway.url, headers=fields, timeout=20).status_code

        assert status() == 503, "the issuer is down at the start: no token can be judged"
        issuer.mode = "good"
        until(lambda: [status() for _ in range(10)] == [200] * 10)

        with Load(gateway.url, issuer) as load:
            for fault in FAULTS:
                issuer.mode = "good"
                issuer.rotate()
                token = issuer.token()
                for worker in workers:
                    until(lambda worker=worker, token=token: worker.accepts(token))
                load.announced = list(issuer.keys)
                issuer.mode = fault
                time.sleep(1.0)
                load.go_on(5)

        for worker in workers:
            worker.close()
        assert load.answers["valid"].keys() == {200}, gateway.log
        assert load.answers["invalid"].keys() <= {401, 503}
        health = requests.get(f"{gateway.url}/_gateway/health", timeout=20).json()["issuers"]
        assert health[issuer.url]["keys"] >= 1
        assert health[issuer.url]["age"] < 60
        assert health[issuer.url]["error"]
