"""The probes of a gateway: before its middlewares, by its keys, and what check warns of."""

from __future__ import annotations

import pytest
from werkzeug.test import Client

from tests.config.files import MEMORY, built
from wsgigate.config.load import read
from wsgigate.runtime import drain

FILE = """
[admin]
[maintenance]
[[middleware]]
use = "limiter"
quota = "1/h"
[services.orders]
instances = ["http://127.0.0.1:9", { url = "http://127.0.0.1:10", weight = 0 }]
required_for_readiness = %d
[[routes]]
path = "/orders"
service = "orders"
"""


def test_probes_pass_no_middleware() -> None:
    client = Client(built(FILE % 1))
    for _ in range(3):
        assert client.get("/_gateway/livez").status_code == 200
        assert client.get("/_gateway/readyz").status_code == 200
    assert [client.get("/_gateway/health").status_code for _ in range(2)] == [200, 429]


def test_a_service_may_be_required_for_readiness() -> None:
    response = Client(built(FILE % 2)).get("/_gateway/readyz")
    assert response.status_code == 503
    assert "service:orders: 1 of 2 instances are available" in response.text


def test_there_are_no_probes_without_an_admin_table() -> None:
    client = Client(built(FILE.replace("[admin]", "") % 1))
    assert client.get("/_gateway/livez").status_code == 404


def test_a_server_that_stops_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = drain.DrainMark()
    monkeypatch.setattr(drain, "SERVER", mark)
    client = Client(built(FILE % 1))
    assert client.get("/_gateway/readyz").status_code == 200
    mark.set()
    assert client.get("/_gateway/readyz").status_code == 503
    assert client.get("/_gateway/livez").status_code == 200
    mark.prepare()
    assert client.get("/_gateway/readyz").status_code == 200


def warnings(middleware: str, admin: str = "[admin]\n") -> list[tuple[str, str]]:
    text = f"{MEMORY}{admin}[[middleware]]\n{middleware}\n"
    return [each for each in read(text, environ={}).warnings if "balancer" in each[1]]


LIMITER = 'use = "limiter"\nquota = "9/h"\n'


@pytest.mark.parametrize(
    "middleware",
    [
        LIMITER,
        LIMITER + 'exempt = { paths = ["/health"] }',
        LIMITER + 'only = { paths = ["/_gateway/*"] }',
        'use = "concurrency-limiter"\nlimit = 3\n',
    ],
)
def test_check_warns_of_a_limiter_before_health(middleware: str) -> None:
    [(key, text)] = warnings(middleware)
    assert key == "middleware[0]"
    assert "may answer 429 to a balancer that probes /_gateway/health" in text
    assert "probe /_gateway/readyz" in text
    assert 'exempt = { paths = ["/_gateway/health"] }' in text


@pytest.mark.parametrize(
    "middleware",
    [
        LIMITER + 'exempt = { paths = ["/_gateway/health"] }',
        LIMITER + 'exempt = { paths = ["/_gateway/*"] }',
        LIMITER + 'exempt = { addresses = ["10.0.0.0/8"] }',
        LIMITER + 'only = { paths = ["/login"] }',
        LIMITER + "observe = true",
        'use = "logger"',
    ],
)
def test_check_does_not_warn_where_health_passes(middleware: str) -> None:
    assert warnings(middleware) == []


def test_check_warns_of_an_authenticator_before_health() -> None:
    keys = (
        'use = "authenticator"\nalgorithms = ["HS256"]\nsecret = "a-secret-of-at-least-32-bytes!!"'
    )
    [(_, text)] = warnings(keys)
    assert "may answer 401" in text
    assert warnings(keys, admin="") == []
    assert warnings(keys + "\nrequired = false") == []
