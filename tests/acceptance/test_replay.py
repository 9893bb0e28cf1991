"""A signature and a proof are accepted once by two workers that get them at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

from tests.acceptance.workers import WHO, Worker, both_workers
from tests.support.dpop import Prover
from tests.support.signing import COVERED, Requester, digest_of
from tests.support.tokens import SECRET
from wsgigate.auth.jwt import mint

Serve = Callable[..., Any]

GATEWAY = """
[gateway]
name = "signed"
threads = 4
[store]
url = "lmdb:data"
[admin]
token = "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk"
[[routes]]
path = "/who"
app = "who_answers:app"
[[routes]]
path = "/bound"
app = "who_answers:app"
[[routes.middleware]]
use = "authenticator"
algorithms = ["HS256"]
secret = "{secret}"
dpop = "required"
[[routes]]
path = "/signed"
app = "who_answers:app"
[[routes.middleware]]
use = "message-signature"
[[routes.middleware.signers]]
id = "ann-1"
subject = "ann"
public_key = '''{key}'''
"""
ROUNDS = 20


def test_each_is_accepted_once_by_two_workers_at_once(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "who_answers.py").write_text(WHO)
    ann, prover = Requester(), Prover()
    text = GATEWAY.format(secret=SECRET, key=ann.public_key)
    server = serve(text, workers=2, env={"PYTHONPATH": str(tmp_path)})
    workers = both_workers(server.url, Worker)
    token = mint(SECRET, "HS256", "ann", cnf={"jkt": prover.key})

    def signed(number: int, body: bytes) -> dict[str, str]:
        digest = digest_of(body)
        fields = ann.fields(
            "POST",
            f"{server.url}/signed",
            covers=(*COVERED, "content-digest"),
            values={"content-digest": digest},
            created=int(time.time()),
            nonce=str(number),
        )
        return {**fields, "Content-Digest": digest}

    def bound(number: int) -> dict[str, str]:
        url, now = f"{server.url}/bound", int(time.time())
        proof = prover.proof(token, url=url, iat=now, jti=str(number))
        return {"Authorization": f"DPoP {token}", "DPoP": proof}

    with ThreadPoolExecutor(2) as threads:
        start = Barrier(2)

        def at_once(worker: Worker, method: str, path: str, **options: Any) -> int:
            start.wait(20)
            url = f"{server.url}{path}"
            return worker.session.request(method, url, timeout=20, **options).status_code

        def by_both(method: str, path: str, **options: Any) -> list[int]:
            asked = [threads.submit(at_once, each, method, path, **options) for each in workers]
            return sorted(each.result(30) for each in asked)

        for number in range(ROUNDS):
            body = b"x" * (number * 5000)
            headers = signed(number, body)
            assert by_both("POST", "/signed", headers=headers, data=body) == [200, 401]
            assert by_both("GET", "/bound", headers=bound(number)) == [200, 401]

        changed = {"headers": signed(ROUNDS, b"hello"), "data": b"jello"}
        assert by_both("POST", "/signed", **changed) == [401, 401]
        changed["data"] = b"hello"
        assert by_both("POST", "/signed", **changed) == [200, 401], "it had spent nothing"
        stolen = {"headers": {"Authorization": f"Bearer {token}"}}
        assert by_both("GET", "/bound", **stolen) == [401, 401]
    for worker in workers:
        worker.close()
