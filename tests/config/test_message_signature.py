"""Signed requests (RFC 9421) in the file: keys of signers, and what an error names."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from werkzeug.test import Client

from tests.config.files import APP, built, errors_of
from tests.support.signing import SECRET, Requester

ANN, BOB = Requester("ann-1"), Requester.with_secret("bob-1")
SIGNED = '[[routes.middleware]]\nuse = "message-signature"\n'
BOTH = (
    SIGNED
    + """tag = "shop"
max_body = "64KiB"
[[routes.middleware.signers]]
id = "ann-1"
subject = "ann"
public_key_file = "ann.pem"
[[routes.middleware.signers]]
id = "bob-1"
subject = "bob"
algorithm = "hmac-sha256"
secret_file = "bob.secret"
scopes = ["read"]
"""
)


def headers(of: Requester, **changes: Any) -> dict[str, str]:
    made = {"created": int(time.time()), "tag": "shop", **changes}
    return of.fields(url="http://localhost/echo", **made)


def test_keys_come_from_files(site: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "ann.pem").write_text(ANN.public_key)
    (tmp_path / "bob.secret").write_text(SECRET + "\n")
    client = Client(built(APP + BOTH, str(tmp_path / "gateway.toml")))
    for each in (ANN, BOB):
        signed = headers(each)
        assert [client.get("/echo", headers=signed).status_code for _ in range(2)] == [200, 401]
    assert client.get("/echo", headers=headers(ANN, tag="other")).status_code == 401
    assert client.get("/echo", headers=headers(Requester("ann-1"))).status_code == 401


def test_a_set_of_keys(site: ModuleType, tmp_path: Path) -> None:
    from jwt.algorithms import OKPAlgorithm

    jwk = {**json.loads(OKPAlgorithm.to_jwk(ANN.private.public_key())), "kid": "ann-1"}
    jwk.pop("key_ops", None)
    (tmp_path / "ann.json").write_text(json.dumps({"keys": [jwk]}))
    file = APP + SIGNED + 'signers = [{ subject = "ann", jwks_file = "ann.json" }]\n'
    client = Client(built(file, str(tmp_path / "gateway.toml")))
    assert client.get("/echo", headers=headers(ANN)).status_code == 200


ONE = f'signers = [{{ id = "a", subject = "ann", secret = "{SECRET}" }}]\n'


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ("", "signers"),
        ("signers = []\n", "signers"),
        ("signers = [{}]\n", "signers[0].subject"),
        ('signers = [{ subject = "a", id = "a" }]\n', "signers[0].public_key"),
        ('signers = [{ subject = "a", id = "a", secret = "short" }]\n', "signers[0].secret"),
        ('signers = [{ subject = "a", id = "a", key = "x" }]\n', "signers[0].key"),
        (f'signers = [{{ subject = "a", secret = "{SECRET}" }}]\n', "signers[0].id"),
        (ONE + 'max_age = "2d"\n', "max_age"),
        (ONE + 'components = ["Date"]\n', "components"),
        (ONE + 'max_body = "x"\n', "max_body"),
        (ONE + "require_nonce = 1\n", "require_nonce"),
    ],
)
def test_an_invalid_key_is_named(site: ModuleType, lines: str, key: str) -> None:
    [(path, _)] = errors_of(APP + SIGNED + lines)
    assert path == f"routes[0].middleware[0].{key}"


def test_a_missing_file_is_named(site: ModuleType, tmp_path: Path) -> None:
    lines = 'signers = [{ id = "a", subject = "ann", public_key_file = "no.pem" }]\n'
    [(path, problem)] = errors_of(APP + SIGNED + lines)
    assert path.startswith("routes[0].middleware[0].signers[0]")
    assert "no.pem cannot be read" in problem
