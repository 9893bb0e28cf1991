"""The command registry: the paths that it serves, and the arguments that it rejects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

from wsgigate.cli import main
from wsgigate.config.build import build
from wsgigate.config.model import Config

TOKEN = "registry-token-of-the-tests"
ONE = {"serviceName": "users", "instanceId": "u-1", "host": "10.0.0.1", "port": 3001}

Run = Callable[..., tuple[int, Config | None]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the command without serving; return its exit code and the configuration to serve."""
    served: list[Config] = []
    for server in ("gunicorn", "granian"):
        monkeypatch.setattr(f"wsgigate.servers.{server}.serve_config", served.append)
    monkeypatch.delenv("REGISTRY_TOKEN", raising=False)

    def run(*arguments: str, **environ: str) -> tuple[int, Config | None]:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        given = list(arguments)
        if "--store" not in given:
            given += ["--store", f"lmdb:{tmp_path / 'data'}"]
        code = main(["registry", *given])
        return code, served[-1] if served else None

    return run


def answer(config: Config, method: str, path: str, token: str = "", **options: Any) -> int:
    gateway = build(config)
    try:
        headers = {"Authorization": f"Bearer {token}"}
        client = Client(gateway)
        return client.open(path, method=method, headers=headers, **options).status_code
    finally:
        gateway.close()


def test_the_command_serves_the_registry_only(run: Run) -> None:
    code, config = run(REGISTRY_TOKEN=TOKEN)
    assert code == 0
    assert config is not None
    assert config.gateway.bind == "127.0.0.1:3004"
    assert config.gateway.name == "service-discovery"
    assert answer(config, "POST", "/register", json=ONE) == 401
    assert answer(config, "POST", "/register", TOKEN, json=ONE) == 201
    assert answer(config, "GET", "/discover/users") == 200
    assert answer(config, "GET", "/health") == 200
    assert answer(config, "GET", "/info") == 404


def test_the_arguments_set_the_options_of_the_registry(run: Run) -> None:
    code, config = run(
        *("--bind", "127.0.0.1:3999", "--workers", "3", "--threads", "40", "--closed-reads"),
        *("--allow", "10.0.0.0/8", "--allow", "127.0.0.1", "--token", "users=USERS_TOKEN"),
        USERS_TOKEN=TOKEN,
    )
    assert code == 0
    assert config is not None
    gateway = config.gateway
    assert (gateway.bind, gateway.workers, gateway.threads) == ("127.0.0.1:3999", 3, 40)
    assert answer(config, "POST", "/register", TOKEN, json=ONE) == 201
    assert answer(config, "POST", "/register", TOKEN, json={**ONE, "serviceName": "a"}) == 403
    assert answer(config, "POST", "/register", TOKEN, json={**ONE, "host": "192.168.0.1"}) == 400
    assert answer(config, "GET", "/discover/users") == 401
    assert answer(config, "GET", "/discover/users", TOKEN) == 200


def test_open_allows_registration_without_a_token(run: Run) -> None:
    code, config = run("--open")
    assert code == 0
    assert config is not None
    assert answer(config, "POST", "/register", json=ONE) == 201


def test_a_memory_store_allows_one_worker_only(run: Run) -> None:
    code, config = run("--open", "--store", "memory:")
    assert code == 0
    assert config is not None
    assert config.gateway.workers == 1


@pytest.mark.parametrize(
    ("arguments", "environ", "told"),
    [
        ((), {}, "REGISTRY_TOKEN is required"),
        ((), {"REGISTRY_TOKEN": ""}, "REGISTRY_TOKEN is required"),
        ((), {"REGISTRY_TOKEN": "short"}, "REGISTRY_TOKEN: the token is 16 to 1024"),
        (("--open", "--bind", "0.0.0.0:3004"), {}, "--open: requires a gateway that listens on"),
        (("--open", "--bind", "nowhere"), {}, "--bind: expected an address"),
        (("--open", "--allow", "10.0.0.1/8"), {}, "--allow: "),
        (("--open", "--allow", "unix"), {}, "--allow: "),
        (("--open", "--token", "users"), {}, "--token: expected SERVICE=NAME"),
        (("--open", "--token", "users=NO_SUCH"), {}, "--token: the environment variable NO_SUCH"),
        (("--open", "--token", "../x=T"), {"T": TOKEN}, "--token: "),
        (("--open", "--store", "memory:", "--workers", "2"), {}, "--store: memory:"),
        (("--open", "--store", "nothing:"), {}, "--store: a store is"),
        (("--open", "--store", "lmdb:/proc/nowhere"), {}, "--store: "),
    ],
)
def test_invalid_arguments_of_registry_are_reported(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    environ: dict[str, str],
    told: str,
) -> None:
    assert run(*arguments, **environ) == (2, None)
    assert capsys.readouterr().err.startswith(f"wsgigate: {told}")
