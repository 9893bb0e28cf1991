"""Tokens that are bound to a key of the client, in the file."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import pytest
from werkzeug.test import Client

from tests.config.files import APP, built, errors_of
from tests.support.dpop import Prover
from wsgigate.auth.jwt import mint

SECRET = "0123456789abcdef0123456789abcdef"
BOUND = f"""[[routes.middleware]]
use = "authenticator"
algorithms = ["HS256"]
secret = "{SECRET}"
dpop = "required"
dpop_max_age = "30s"
dpop_algorithms = ["ES256"]
"""
ANN = Prover()
TOKEN = mint(SECRET, "HS256", "ann", cnf={"jkt": ANN.key})


def proof(token: str, **changes: Any) -> dict[str, str]:
    value = ANN.proof(token, url="http://localhost/echo", iat=int(time.time()), **changes)
    return {"Authorization": f"DPoP {token}", "DPoP": value}


def test_a_token_with_its_proof_passes_once(site: ModuleType) -> None:
    client = Client(built(APP + BOUND))
    assert client.get("/echo", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 401
    headers = proof(TOKEN)
    assert [client.get("/echo", headers=headers).status_code for _ in range(2)] == [200, 401]


def test_the_store_of_proofs_may_fail(site: ModuleType) -> None:
    built(APP + BOUND + 'on_store_error = "allow"\n').close()
    unbound = BOUND.replace('dpop = "required"\n', "")
    [(path, problem)] = errors_of(APP + unbound + 'on_store_error = "allow"\n')
    assert path == "routes[0].middleware[0].on_store_error"
    assert "dpop" in problem


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("dpop", 'dpop = "always"'),
        ("dpop", "dpop = true"),
        ("dpop_max_age", 'dpop_max_age = "2h"'),
        ("dpop_algorithms[0]", 'dpop_algorithms = ["HS256"]'),
        ("dpop_nonce_secret", 'dpop_nonce_secret = "short"'),
        ("certificate_bound", "certificate_bound = 1"),
    ],
)
def test_an_invalid_key_is_named(site: ModuleType, key: str, line: str) -> None:
    name = line.split(" ", maxsplit=1)[0]
    others = "".join(each for each in BOUND.splitlines(True) if not each.startswith(f"{name} "))
    [(path, _)] = errors_of(APP + others + line + "\n")
    assert path == f"routes[0].middleware[0].{key}"
