"""A real nginx behind the gateway: what it compresses, and a gateway that leads to itself."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

Serve = Callable[..., Any]

NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    gzip on;
    gzip_types text/plain;
    gzip_min_length 1;
    server {{
        listen 127.0.0.1:{port};
        default_type text/plain;
        location / {{ root {folder}; }}
    }}
}}
"""

GATEWAY = """
[gateway]
name = "test"
loop_field = "{field}"
[store]
url = "memory:"
[services.files]
instances = ["{url}"]
[[routes]]
path = "/"
service = "files"
"""


@pytest.mark.parametrize(("field", "coding"), [("via", None), ("cdn-loop", "gzip")])
def test_nginx_compresses_for_requests_without_via(
    field: str, coding: str | None, serve: Serve, serve_command: Serve, tmp_path: Path
) -> None:
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert program is not None, "apt-get install nginx-light"
    (tmp_path / "page.txt").write_text("a" * 10_000)

    def command(port: int) -> list[str]:
        file = tmp_path / "nginx.conf"
        file.write_text(NGINX.format(folder=tmp_path, port=port))
        return [program or "", "-c", str(file), "-p", str(tmp_path), "-e", "stderr"]

    nginx = serve_command(command)
    gateway = serve(GATEWAY.format(field=field, url=nginx.url), workers=1)
    fields = {"Accept-Encoding": "gzip"}
    answer = requests.get(f"{gateway.url}/page.txt", headers=fields, timeout=20)
    assert answer.text == "a" * 10_000
    assert answer.headers.get("Content-Encoding") == coding


@pytest.mark.parametrize("field", ["via", "cdn-loop"])
def test_a_gateway_that_forwards_to_itself_is_a_loop(
    field: str, serve_command: Serve, tmp_path: Path
) -> None:
    def command(port: int) -> list[str]:
        file = tmp_path / "gateway.toml"
        file.write_text(GATEWAY.format(field=field, url=f"http://127.0.0.1:{port}"))
        run = [sys.executable, "-m", "wsgigate", "run", str(file)]
        return [*run, "--bind", f"127.0.0.1:{port}", "--workers", "1"]

    gateway = serve_command(command)
    assert requests.get(f"{gateway.url}/", timeout=20).status_code == 508
