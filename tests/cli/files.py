"""A gateway's file, and the command line called with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsgigate.cli import main

SECRET = "a-secret-of-at-least-thirty-two-bytes"

SHOP = """\
[store]
url = "memory:"

[gateway]
fallback = "wsgiref.simple_server:demo_app"

[admin]
prefix = "/_gateway"

[[middleware]]
use = "limiter"
quota = "100 per 15 minutes"
exempt = { paths = ["/_gateway/*"] }

[services.users]
instances = ["http://127.0.0.1:3001", "http://127.0.0.1:3002"]

[[routes]]
path = "/api/users/{id}"
service = "users"
methods = ["GET", "PUT"]
strip_prefix = "/api"
add_prefix = "/v1"

[[routes.middleware]]
use = "authenticator"
algorithms = ["HS256"]
secret = "${SHOP_SECRET}"
issuer = "https://id.example.com"
audience = "shop"
scopes = ["users"]

[[routes]]
path = "/old"
host = "old.example.com"
exact = true
app = "wsgiref.simple_server:demo_app"
"""

BROKEN = """\
[gateway]
bind = "localhost"

[services.users]
timeout = "soon"

[[routes]]
path = "/a"
app = "not_there:app"
"""


class Cli:
    """Calls the command line."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def file(self, text: str, name: str = "gateway.toml") -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        try:
            code = main(argv)
        except SystemExit as left:  # how argparse ends
            code = left.code if isinstance(left.code, int) else 1
        out, err = self._capsys.readouterr()
        return code, out, err
