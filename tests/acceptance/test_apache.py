"""A real Apache: in front of the gateway with its defaults, and behind it as a WebDAV server."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.certificates import make_certificate
from wsgigate.testing.backend import Backend, Received, reply

Serve = Callable[..., Any]

MODULES = (
    *("mpm_event", "authn_core", "authz_core", "headers", "proxy", "proxy_http", "ssl", "alias"),
    *("dir", "dav", "dav_fs"),
)

CONFIG = """
ServerRoot {folder}
ServerName localhost
DefaultRuntimeDir {folder}
PidFile {folder}/{port}.pid
Mutex file:{folder}
ErrorLog /dev/stderr
{user}
{modules}
Listen 127.0.0.1:{port}
{rest}
"""

FRONT = """
SSLEngine on
SSLCertificateFile {certificate}
{more}
ProxyPass / http://127.0.0.1:{gateway}/
"""

DAV = """
DavLockDB {folder}/locks
DocumentRoot {folder}/files
<Directory {folder}/files>
    Dav On
    Require all granted
</Directory>
"""

GATEWAY = """
[gateway]
name = "test"
trusted_proxies = ["127.0.0.1"]
[store]
url = "memory:"
[services.files]
instances = ["{url}"]
[[routes]]
path = "/api"
service = "files"
strip_prefix = true
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder that Apache may use, which gives up the rights it was started with."""
    made = Path(tempfile.mkdtemp(prefix="wsgigate-apache-"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def apache(folder: Path, serve_command: Serve) -> Serve:
    program = shutil.which("apache2", path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert program is not None, "apt-get install apache2"

    def start(rest: str) -> Any:
        modules = "\n".join(
            f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in MODULES
        )

        def command(port: int) -> list[str]:
            file = folder / f"{port}.conf"
            user = "User www-data\nGroup www-data" if Path("/root").owner() == "root" else ""
            file.write_text(
                CONFIG.format(folder=folder, port=port, modules=modules, rest=rest, user=user)
            )
            return [program or "", "-f", str(file), "-DFOREGROUND"]

        return serve_command(command)

    return start


def telling(connection: socket.socket, request: Received) -> None:
    fields = {name.title(): value for name, value in request.fields}
    host, proto = fields.get("X-Forwarded-Host"), fields["X-Forwarded-Proto"]
    place = {
        "/told": f"{proto}://{host}/items/",
        "/scheme": f"{proto}://{fields['Host']}/items/",
        "/plain": f"http://{fields['Host']}/items/",
        "/path": "/items/",
    }.get(request.target, "")
    located = [("Location", place)] if place else []
    connection.sendall(reply(json.dumps(fields).encode(), fields=located))


def test_apache_in_front_with_its_defaults(apache: Serve, serve: Serve, folder: Path) -> None:
    certificate = make_certificate(folder)
    certificate.chmod(0o644)
    with Backend(telling) as backend:
        gateway = serve(GATEWAY.format(url=backend.url), workers=1)
        for more, proto, port in (
            ('RequestHeader set X-Forwarded-Proto "https"', "https", None),
            ("", "http", "80"),
        ):
            front = apache(FRONT.format(certificate=certificate, gateway=gateway.port, more=more))
            outside = f"127.0.0.1:{front.port}"

            def ask(path: str, host: str = outside, at: int = front.port) -> requests.Response:
                return requests.get(
                    f"https://127.0.0.1:{at}/api{path}",
                    headers={"Host": host},
                    verify=str(certificate),
                    allow_redirects=False,
                    timeout=20,
                )

            told = ask("/").json()
            assert told["X-Forwarded-Host"] == outside
            assert told["X-Forwarded-Proto"] == proto
            assert told["X-Forwarded-Port"] == str(front.port)
            told = ask("/", host="shop.example").json()
            assert told["X-Forwarded-Host"] == "shop.example"
            assert told["X-Forwarded-Port"] == (port or "443")
            for path in ("/told", "/scheme", "/plain", "/path"):
                assert ask(path).headers["Location"] == "/api/items/", path
                assert ask(path, host="shop.example").headers["Location"] == "/api/items/", path


def test_apache_behind_as_a_webdav_server(apache: Serve, serve: Serve, folder: Path) -> None:
    files = folder / "files"
    files.mkdir()
    files.chmod(0o777)
    dav = apache(DAV.format(folder=folder))
    gateway = serve(GATEWAY.format(url=dav.url), workers=1)
    url = f"{gateway.url}/api"

    def ask(method: str, path: str, to: str = "", **fields: str) -> requests.Response:
        headers = {"Destination": to} if to else {}
        return requests.request(
            method, url + path, headers=headers | fields, data=b"text" if method == "PUT" else None,
            allow_redirects=False, timeout=20,
        )  # fmt: skip

    assert ask("PUT", "/a").status_code == 201
    assert ask("MOVE", "/a", f"{url}/b%20c").status_code == 201
    assert ask("GET", "/a").status_code == 404
    assert ask("GET", "/b%20c").text == "text"
    assert ask("COPY", "/b%20c", f"{url}/d").status_code == 201
    assert sorted(each.name for each in files.iterdir()) == ["b c", "d"]
    for there in (f"{gateway.url}/elsewhere/d", f"{url}/../d", "http://other.example/api/d"):
        assert ask("MOVE", "/d", there).status_code >= 400
    assert ask("MKCOL", "/folder").status_code == 201
    assert ask("GET", "/folder").headers["Location"] == "/api/folder/"
    assert sorted(each.name for each in files.iterdir()) == ["b c", "d", "folder"]
