"""A gateway from a file in front of services, for tests of traffic rules."""

from __future__ import annotations

import json
from typing import Any

import pytest
from werkzeug.test import Client

from tests.config.files import built
from wsgigate.testing.backend import reply

JSON_LOG = '[[middleware]]\nuse = "logger"\nformat = "json"\n'
ADMIN = "a-token-of-32-or-more-characters"
BAD = reply(b"bad", status="503 Busy")


def services(more: str = "", **urls: str) -> str:
    return (
        "".join(f'[services.{name}]\ninstances = ["{url}"]\n' for name, url in urls.items()) + more
    )


def route(*lines: str, path: str = "/a", service: str | None = "first") -> str:
    table = f'[[routes]]\npath = "{path}"\n' + (f'service = "{service}"\n' if service else "")
    return table + "".join(f"{line}\n" for line in lines)


class Gate:
    """A gateway made of a file's text; closed at the end of the test."""

    def __init__(self, text: str, path: str = "") -> None:
        self.gateway = built(text, path)
        self.client = Client(self.gateway, use_cookies=False)

    def ask(self, path: str = "/a", method: str = "GET", **options: Any) -> Any:
        return self.client.open(path, method=method, **{"buffered": True, **options})

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.gateway.close()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
