"""The programs in README.rst run as they are printed, but for ports that are free here."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import jwt
import pytest
import requests

from tests.support.servers import Servers, home
from wsgigate.testing.backend import Backend

README = Path(__file__).parents[2] / "README.rst"
BLOCK = re.compile(r"^\.\. code-block:: \w+\n   :name: (\S+)\n\n((?:   .*\n|\n)+)", re.MULTILINE)
PRINTED = {name: dedent(text).strip() + "\n" for name, text in BLOCK.findall(README.read_text())}
SECRET = "change me: at least 32 bytes long"


def test_every_program_of_the_readme_is_run_here() -> None:
    assert set(PRINTED) == {
        "hello.py",
        "hello.sh",
        "shop.py",
        "shop.sh",
        "gateway.toml",
        "gateway.sh",
    }
    assert README.read_text().count(":name:") == len(PRINTED)


@contextmanager
def running(name: str, folder: Path, backend: Backend) -> Iterator[str]:
    """Run what is printed under *name*; yield the URL at which it serves."""

    def command(port: int) -> list[str]:
        for file, text in PRINTED.items():
            text = text.replace("3003", str(backend.port)).replace("3000", str(port))
            (folder / file).write_text(text)
        lines = [line.removeprefix("$ ") for line in PRINTED[f"{name}.sh"].splitlines()]
        lines[-1] = f"exec {lines[-1]}"
        if "gunicorn" in lines[-1]:
            lines[-1] += f" --bind 127.0.0.1:{port}"
        return ["sh", "-ec", "\n".join(lines)]

    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with Servers() as servers:
        yield servers.start(command, folder / "log", {"PATH": path, **home(folder)}).url


def token() -> dict[str, str]:
    encoded = jwt.encode({"sub": "7", "exp": 2**33}, SECRET, algorithm="HS256")
    return {"Authorization": f"Bearer {encoded}"}


def test_one_middleware_around_an_app(tmp_path: Path, backend: Backend) -> None:
    with running("hello", tmp_path, backend) as url:
        answer = requests.get(url, timeout=20)
        assert answer.text == "Hello!\n"
        assert answer.headers["X-RateLimit-Limit"] == "100"
        before = int(answer.headers["X-RateLimit-Remaining"])
        after = requests.get(url, timeout=20).headers["X-RateLimit-Remaining"]
        assert int(after) == before - 1


def test_a_gateway_around_an_app(tmp_path: Path, backend: Backend) -> None:
    with running("shop", tmp_path, backend) as url:
        assert requests.get(url, timeout=20).text == "Still served here.\n"
        assert requests.get(url + "/orders/7", timeout=20).status_code == 401
        answer = requests.get(url + "/orders/7", headers=token(), timeout=20)
        assert answer.text == "ok"
        assert backend.requests[-1].target == "/orders/7"


def test_a_gateway_of_its_own(tmp_path: Path, backend: Backend) -> None:
    with running("gateway", tmp_path, backend) as url:
        assert requests.get(url + "/api/orders/7", timeout=20).status_code == 401
        answer = requests.get(url + "/api/orders/7", headers=token(), timeout=20)
        assert answer.text == "ok"
        targets = {request.target for request in backend.requests}
        assert targets <= {"/7", "/health"}
        assert "/7" in targets


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_two_commands_are_there(command: str) -> None:
    assert command in README.read_text()
    program, target = shlex.split(command)
    done = subprocess.run(
        [program, "--dry-run", target], cwd=README.parent, capture_output=True, check=False
    )
    assert done.returncode == 0
