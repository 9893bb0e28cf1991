"""The command token."""

from __future__ import annotations

import jwt
import pytest

from tests.cli.files import SECRET, SHOP, Cli


def decoded(token: str, secret: str = SECRET) -> dict[str, object]:
    claims: dict[str, object] = jwt.decode(
        token, secret, algorithms=["HS256"], options={"verify_aud": False}
    )
    return claims


def test_the_authenticator_of_the_file_accepts_the_token(cli: Cli) -> None:
    code, out, err = cli(
        *("token", cli.file(SHOP), "--sub", "7", "--expires", "5m"),
        *("--claim", "role=admin", "--claim", "groups=[1, 2]"),
    )
    assert (code, err) == (0, "")
    claims = decoded(out.strip())
    issued, until = claims.pop("iat"), claims.pop("exp")
    assert isinstance(issued, int)
    assert until == issued + 300
    assert claims == {
        "sub": "7",
        "iss": "https://id.example.com",
        "aud": "shop",
        "scope": "users",
        "role": "admin",
        "groups": [1, 2],
    }


def test_the_token_has_the_claims_that_the_file_requires(cli: Cli) -> None:
    required = '{ token_type = "access", tenant = ["a", "b"], level = 3 }'
    text = (
        f'[[middleware]]\nuse = "authenticator"\nalgorithms = ["HS256"]\nsecret = "{SECRET}"\n'
        f"required_claims = {required}\n"
    )
    code, out, err = cli("token", cli.file(text))
    assert code == 0, err
    claims = decoded(out.strip())
    assert (claims["token_type"], claims["tenant"], claims["level"]) == ("access", "a", 3)


def test_token_without_a_file_uses_the_secret_of_a_variable(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = cli("token", "--secret-env", "SHOP_SECRET")
    assert code == 0
    assert decoded(out.strip())["sub"] == "test"
    monkeypatch.delenv("SHOP_SECRET")
    code, out, err = cli("token", "--secret-env", "SHOP_SECRET")
    assert (code, out) == (2, "")
    assert "the environment variable SHOP_SECRET is not set" in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--claim", "role"], "--claim: expected NAME=VALUE, got 'role'"),
        (["--expires", "soon"], "expected a duration"),
        (["--secret-env", "SHORT"], "HS256 needs at least 32"),
    ],
)
def test_invalid_arguments_of_token_are_reported(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, argv: list[str], said: str
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setenv("SHORT", "hunter2")
    code, out, err = cli("token", *argv)
    assert (code, out) == (2, "")
    assert said in err
    assert "hunter2" not in err


def test_token_requires_an_authenticator_with_a_secret(cli: Cli) -> None:
    code, _, err = cli("token", cli.file(""))
    assert code == 2
    assert "has no authenticator with a secret (HS256, HS384 or HS512)" in err
    assert "only the issuer can sign tokens" in err
