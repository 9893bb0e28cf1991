"""Issuers of tokens in the file: their keys, their status, and the checks before the start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from werkzeug.test import Client

from tests.config.files import APP, SECRET, built, errors_of
from tests.support.issuer import FaultyIssuer, signing_key
from tests.support.logs import silence
from wsgigate.auth.jwt import mint
from wsgigate.config.build import check_file
from wsgigate.config.load import read_file

quiet = silence("wsgigate.jwks")

pytestmark = pytest.mark.usefixtures("site")


def route(options: str) -> str:
    return f'{APP}middleware = [{{ use = "authenticator", {options} }}]\n'


def ask(client: Client, token: str) -> int:
    answer = client.get("/echo", headers={"Authorization": f"Bearer {token}"}, buffered=True)
    return answer.status_code


def test_an_issuer_alone_is_discovered_and_reported(tmp_path: Path) -> None:
    with FaultyIssuer() as issuer:
        gateway = built("[admin]\n" + route(f'issuer = "{issuer.url}", audience = "api"'))
        assert issuer.requests == [], "building a gateway asks no one"
        client = Client(gateway)
        assert ask(client, issuer.token(aud="api")) == 200
        assert ask(client, issuer.token(aud="other")) == 401
        status = client.get("/_gateway/health").json["issuers"]  # type: ignore[index]
        assert status[issuer.url]["keys"] == 1
        assert 0 <= status[issuer.url]["age"] < 60
        gateway.close()


def test_routes_of_one_issuer_share_its_keys(tmp_path: Path) -> None:
    with FaultyIssuer() as issuer:
        options = f'issuer = "{issuer.url}", jwks = "{issuer.jwks_url}"'
        other = route(options).replace("/echo", "/other")
        gateway = built(route(options) + other)
        client = Client(gateway)
        token = issuer.token()
        for path in ("/echo", "/other"):
            fields = {"Authorization": f"Bearer {token}"}
            assert client.get(path, headers=fields, buffered=True).status_code == 200
        assert issuer.fetches == 1
        gateway.close()


def test_several_issuers_in_the_file_each_with_keys_of_its_own(tmp_path: Path) -> None:
    key = signing_key("ES256")
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [key.jwk()]}))
    (tmp_path / "secret").write_text(SECRET)
    text = APP + (
        "[[routes.middleware]]\n"
        'use = "authenticator"\n'
        "[[routes.middleware.issuers]]\n"
        'issuer = "https://a.example"\njwks_file = "keys.json"\nmax_age = "1h"\n'
        "[[routes.middleware.issuers]]\n"
        'issuer = "https://b.example"\nalgorithms = ["HS256"]\nsecret_file = "secret"\n'
        'required_claims = { "realm_access.roles" = "clerk" }\n'
    )
    gateway = built(f"[admin]\n{text}", str(tmp_path / "gateway.toml"))
    client = Client(gateway)
    roles = {"realm_access": {"roles": ["clerk"]}}
    assert ask(client, mint(SECRET, "HS256", "7", iss="https://b.example", **roles)) == 200
    assert ask(client, mint(SECRET, "HS256", "7", iss="https://b.example")) == 401
    assert ask(client, mint(SECRET, "HS256", "7", iss="https://a.example", **roles)) == 401
    status = client.get("/_gateway/health").json["issuers"]  # type: ignore[index]
    assert status == {"https://a.example": {"keys": 1}}
    gateway.close()


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        ('jwks = "http://id.example.com/keys"', "jwks", "must begin with https://"),
        ('jwks = "not json"', "jwks", "a JWK set that is not strict JSON"),
        ('jwks = "keys/jwks.json"', "jwks", "; give a file as jwks_file, and a URL with https://"),
        ('jwks_uri = "https://a.example/keys"', "jwks_uri", 'did you mean "jwks"?'),
        ('secret_path = "key"', "secret_path", 'did you mean "secret_file"?'),
        ('issuer = "id.example.com"', "issuer", "is not a URL; give it as the tokens have it"),
        (
            'issuer = "https://a.example/.well-known/openid-configuration"',
            "issuer",
            "is the discovery document; give the issuer that it names, such as 'https://a.example'",
        ),
        ('issuer = "http://id.example.com"', "issuer", "must begin with https://"),
        ('jwks_file = "missing.json"', "jwks_file", "missing.json cannot be read: No such file"),
        ('issuer = "https://a.example", ca = "missing"', "ca", "cannot load CA certificates from"),
        ('issuer = "shop"', "algorithms", "required with a secret or a public_key; other keys are"),
        (f'secret = "{SECRET}"', "algorithms", "required with secret, such as"),
        (
            'issuers = [{ issuer = "https://a.example" }, { issuer = "b", jwks = "{}" }]',
            "issuers[1].jwks",
            "a JWK set without",
        ),
        (
            'issuers = [{ issuer = "https://a.example", isuer = "b" }]',
            "issuers[0].isuer",
            'is not a known key; did you mean "issuer"?',
        ),
        (
            'issuers = [{ issuer = "https://a.example", public_key_file = "gone" }]',
            "issuers[0].public_key_file",
            "gone cannot be read",
        ),
        ('audience = "a", issuers = [{ issuer = "https://a.example" }]', "audience", "in each of"),
    ],
)
def test_an_error_names_its_key_and_the_cure(options: str, key: str, said: str) -> None:
    ((path, text),) = errors_of(route(options))
    assert path == f"routes[0].middleware[0].{key}"
    assert said in text


def test_the_file_of_a_public_key_may_be_der_and_that_of_a_secret_may_not(tmp_path: Path) -> None:
    key = signing_key("ES256")
    public = key.private.public_key()
    data = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.der").write_bytes(data)
    text = route('algorithms = ["ES256"], public_key_file = "key.der"')
    gateway = built(text, str(tmp_path / "gateway.toml"))
    assert ask(Client(gateway), key.token({"sub": "7", "exp": 2**33})) == 200
    gateway.close()
    text = route('algorithms = ["HS256"], secret_file = "key.der"')
    ((path, said),) = errors_of(text, str(tmp_path / "gateway.toml"))
    assert path == "routes[0].middleware[0].secret_file"
    assert said.endswith("key.der cannot be read: it is not UTF-8 text")


def test_secrets_of_issuers_are_not_shown() -> None:
    options = 'issuers = [{ issuer = "b", algorithms = ["HS512"], secret = "hunter2hunter2" }]'
    ((_, text),) = errors_of(route(options))
    assert "hunter2" not in text


def test_check_warns_of_an_issuer_that_cannot_be_reached(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    with FaultyIssuer() as issuer:
        file.write_text('store.url = "memory:"\n' + route(f'issuer = "{issuer.url}"'))

        def warnings(**options: bool) -> list[tuple[str, str]]:
            parsed = read_file(str(file))
            check_file(parsed, str(file), **options).gateway.close()
            return parsed.warnings

        assert warnings(asks=True) == []
        issuer.mode = "error"
        ((path, text),) = warnings(asks=True)
        assert path == "routes[0].middleware[0]"
        assert text.startswith(f"the keys of {issuer.url} cannot be fetched: it answered 500; ")
        asked = len(issuer.requests)
        assert warnings(asks=True, offline=True) == warnings() == []
        assert len(issuer.requests) == asked
