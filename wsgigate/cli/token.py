"""The command token: print a signed token for testing."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsgigate.auth.jwt import SECRET_BYTES, mint
from wsgigate.cli.main import failed
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import load
from wsgigate.config.model import Config
from wsgigate.config.tables import Arguments
from wsgigate.units import parse_duration

__all__ = ["token"]


class _Signing(NamedTuple):
    algorithm: str
    secret: str
    claims: dict[str, Any]


def token(arguments: argparse.Namespace) -> int:
    """Print the token, and nothing else."""
    try:
        signing = _signing(arguments)
        minted = mint(
            signing.secret,
            signing.algorithm,
            arguments.sub,
            parse_duration(arguments.expires),
            **{**signing.claims, **_claims(arguments.claim)},
        )
    except (ConfigError, ValueError) as error:
        return failed(error)
    print(minted)
    return 0


def _signing(arguments: argparse.Namespace) -> _Signing:
    if arguments.file is None:
        name: str = arguments.secret_env
        secret = os.environ.get(name, "")
        if not secret:
            raise ValueError(
                f"the environment variable {name} is not set or empty; "
                "set it to the secret, or give a FILE"
            )
        return _Signing("HS256", secret, {})
    return _of_file(load(arguments.file), arguments.file)


def _of_file(config: Config, path: str) -> _Signing:
    entries = [*config.middleware, *(one for route in config.routes for one in route.middleware)]
    for options in (entry.options for entry in entries if entry.use == "authenticator"):
        if options is None:
            continue
        algorithm = next((name for name in options["algorithms"] if name in SECRET_BYTES), None)
        if algorithm is None:
            continue
        claims = {"iss": options.get("issuer"), "aud": _first(options.get("audience"))}
        if "scopes" in options:
            claims["scope"] = " ".join(options["scopes"])
        claims = {key: value for key, value in claims.items() if value}
        required = options.get("required_claims")
        if isinstance(required, Mapping):
            claims |= {name: _first(value) for name, value in required.items()}
        return _Signing(algorithm, _secret(options, path), claims)
    raise ValueError(f"{path} has no authenticator with a secret (HS256, HS384 or HS512)")


def _secret(options: Arguments, path: str) -> str:
    secret: str | None = _first(options.get("secret"))
    if secret is None and "secret_file" in options:
        file = Path(path).resolve().parent / options["secret_file"]
        try:
            secret = file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    return secret or ""


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _claims(texts: Sequence[str]) -> dict[str, Any]:
    claims: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"--claim: expected NAME=VALUE, got {text!r}")
        try:
            claims[name] = json.loads(value)
        except ValueError:
            claims[name] = value
    return claims
