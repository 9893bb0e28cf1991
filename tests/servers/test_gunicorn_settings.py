"""A GateWorker's settings, TLS and environ, compared with gunicorn's own worker."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from gunicorn.http.wsgi import create

from tests.servers.gate import Log, Make, hello
from tests.support.certificates import make_certificate
from tests.support.interpreter import run_alone
from wsgigate.http.wsgi import LEND_THREAD
from wsgigate.servers.gunicorn_body import ClientStalled
from wsgigate.servers.gunicorn_worker import GateWorker


@pytest.mark.parametrize("name", ["strip_header_spaces", "permit_obsolete_folding"])
def test_settings_without_effect_are_reported(name: str) -> None:
    cfg, log = Config(), Log()
    GateWorker.check_config(cfg, log)
    assert log.lines == []
    cfg.set(name, True)
    GateWorker.check_config(cfg, log)
    assert log.lines == [f"GateWorker does not support gunicorn's setting {name}"]


class Impatient(GateWorker):
    idle_timeout = 0.2


def test_an_upgrade_over_tls_has_the_deadlines_of_other_requests(
    make: Make, tmp_path: Path
) -> None:
    """Its socket is a blocking one for the app, but not for the server."""
    seen: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(environ["gunicorn.socket"].gettimeout())
        try:
            environ["wsgi.input"].read()
        except Exception as error:
            seen.append(type(error))
        seen.append(environ["gunicorn.socket"].gettimeout())
        return hello(environ, start_response)

    file = str(make_certificate(tmp_path))
    gate = make(app, kind=Impatient, certfile=file, keyfile=file)
    plain = gate.connect()
    tls = ssl.create_default_context(cafile=file)
    clients: list[ssl.SSLSocket] = []

    def upload() -> None:
        client = tls.wrap_socket(plain, server_hostname="127.0.0.1")
        clients.append(client)
        fields = b"Upgrade: x\r\nConnection: upgrade\r\nContent-Length: 200000\r\n\r\n"
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + bytes(80_000))

    thread = threading.Thread(target=upload)
    thread.start()
    while not seen:
        gate.step()
    thread.join()
    assert seen == [None, ClientStalled, None]
    clients[0].close()


UNLIKE = {
    *("wsgi.errors", "wsgi.input", "wsgi.early_hints", "gunicorn.socket", "wsgi.multithread"),
    *("HTTP_COOKIE", LEND_THREAD),
}


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
@pytest.mark.parametrize(
    "data",
    [
        b"GET /a%20b?c=d HTTP/1.1\r\nHost: a.test:81\r\nX-A: 1\r\nX-A: 2\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Type: a/b\r\n\r\nok",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET /mounted/x HTTP/1.1\r\nHost: a\r\nSCRIPT_NAME: /mounted\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\n\r\n",
    ],
)
def test_the_environ_is_that_of_gunicorns_own_worker(
    data: bytes, family: int, make: Make, tmp_path: Path
) -> None:
    seen: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(environ)
        return hello(environ, start_response)

    gate = make(app)
    gate.listener.close()
    gate.listener = socket.socket(family)
    gate.listener.bind(
        {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}.get(
            socket.AddressFamily(family), str(tmp_path / "socket")
        )
    )
    gate.listener.listen()
    with socket.socket(family) as client:
        client.connect(gate.listener.getsockname())
        sock, address = gate.listener.accept()
        gate.worker.opened(sock, address, gate.listener)
        gate.ask(data, client)
    parsed = Request(gate.worker.cfg, IterUnreader(iter([data])), address)
    _, theirs = create(parsed, sock, address, gate.listener.getsockname(), gate.worker.cfg)
    kept = [{key: environ[key] for key in environ.keys() - UNLIKE} for environ in (seen[0], theirs)]
    assert kept[0] == kept[1]
    assert theirs.keys() - seen[0].keys() <= UNLIKE


def test_a_file_with_json_logs_has_gunicorn_write_json(tmp_path: Path) -> None:
    log, file = tmp_path / "error.log", tmp_path / "gateway.toml"
    file.write_text('[logging]\nformat = "json"\n')
    run_alone(f"""
import json, logging
from gunicorn.config import Config
from wsgigate.servers.gunicorn import settings

cfg = Config()
for name, value in settings({str(file)!r}).items():
    cfg.set(name, value)
cfg.set("errorlog", {str(log)!r})
made = cfg.logger_class(cfg)
made.info("started %s", "a\\nb")
made.setup(cfg)  # a reload
made.info("again")
""")
    shown = [json.loads(line) for line in log.read_text().splitlines()]
    assert [each["message"] for each in shown] == ["started a\nb", "again"]
    assert {each["logger"] for each in shown} == {"gunicorn.error"}
