"""The tables of the pages are true: each row is tried."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from werkzeug.test import Client, EnvironBuilder

from tests.docs.pages import FOLDER, NAMED, PAGES, table
from tests.support.certificates import make_certificate
from tests.support.ports import refused_port
from wsgigate import Forwarder, Instance, Pool
from wsgigate.cli.commands import request
from wsgigate.client.adapter import Adapter, Sessions, gateway_session
from wsgigate.config.build import assemble
from wsgigate.config.load import parse
from wsgigate.config.middlewares import MIDDLEWARES, key_named
from wsgigate.coordination.overrides import DRAINED, Override
from wsgigate.http.target import BadTarget, canonical_path, target_of
from wsgigate.http.wsgi import close_body
from wsgigate.proxy.request import RequestMaker
from wsgigate.proxy.rewriting import ForwardedOrigin, cookie_path, location, refresh
from wsgigate.rules.quota import Quota
from wsgigate.rules.routing import Match, MethodNotAllowed, Route, RouteConflict, Router
from wsgigate.servers.gunicorn import settings
from wsgigate.testing.backend import Backend, cut


@pytest.fixture(scope="module")
def dispatcher() -> Any:
    config = parse(f'store.url = "memory:"\n{NAMED["routing.toml"].text}', environ={})
    return assemble(config).dispatcher


@pytest.mark.parametrize(("asked", "route", "_because"), table("routing-table"))
def test_a_request_goes_where_the_table_says(
    asked: str, route: str, _because: str, dispatcher: Any
) -> None:
    method, url = asked.split(" ")
    try:
        found = dispatcher.find(request(method, url))
    except BadTarget:
        found = "400"
    if isinstance(found, Match):
        found = found.route.name
    elif isinstance(found, MethodNotAllowed):
        found = "405"
    assert (found or "404") == route


@pytest.mark.parametrize(("one", "another", "together"), table("conflict-table"))
def test_two_routes_conflict_where_the_table_says(one: str, another: str, together: str) -> None:
    def made(text: str) -> Route[None]:
        *words, path = text.split(" ")
        methods = [word for word in words if word.isupper()]
        return Route(path, None, methods=methods, exact="exactly" in words)

    try:
        Router([made(one), made(another)])
    except RouteConflict:
        assert together == "conflict"
    else:
        assert together == "fine"


@pytest.mark.parametrize(("strip", "add", "asked", "forwarded"), table("prefix-table"))
def test_prefixes_go_and_come_as_the_table_says(
    strip: str, add: str, asked: str, forwarded: str
) -> None:
    environ = {**EnvironBuilder().get_environ(), **request("GET", asked)}
    maker = RequestMaker(strip_prefix=strip, add_prefix=add)
    made = maker.make(environ, target_of(environ), Instance("http://127.0.0.1:9"))
    assert made.target == forwarded


@pytest.mark.parametrize(("path", "becomes", "_because"), table("target-table"))
def test_a_path_becomes_what_the_table_says(path: str, becomes: str, _because: str) -> None:
    if becomes == "refused":
        with pytest.raises(BadTarget):
            canonical_path(path)
    else:
        assert canonical_path(path) == becomes


@pytest.mark.parametrize(("said", "seen"), table("location-table"))
def test_a_field_is_led_back_as_the_table_says(said: str, seen: str) -> None:
    name, _, value = said.partition(": ")
    if name in ("Location", "Refresh"):
        lead = location if name == "Location" else refresh
        told = ForwardedOrigin("https", "shop.example", "443")
        led = lead(value, "http://10.0.0.5:8000", "/api", forwarded=told)
    else:
        led = cookie_path(value, "", "/api", "10.0.0.5")
    assert f"{name}: {led}" == seen


def _forwarder(urls: list[str], **options: Any) -> Client:
    return Client(Forwarder(Pool("orders", [Instance(url) for url in urls]), **options))


def _to(backend: Backend, **options: Any) -> Client:
    return _forwarder([backend.url], **options)


def _nothing_listens(backend: Backend) -> Any:
    with refused_port() as port:
        return _forwarder([f"http://127.0.0.1:{port}"]).get("/")


def _full(backend: Backend) -> Any:
    backend.answers = [lambda connection, request: connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")]
    with gateway_session() as session:
        session.mount("http://", Adapter(max_open=1))
        sessions = Sessions(lambda: session)
        patient = _to(backend, sessions=sessions)
        held = patient.application(EnvironBuilder().get_environ(), lambda *_: lambda _: None)
        answer = _to(backend, sessions=sessions, connect_timeout=0.05).get("/")
        close_body(held)
        return answer


def _no_instance(backend: Backend) -> Any:
    return _forwarder([]).get("/")


def _all_drained(backend: Backend) -> Any:
    pool = Pool("orders", [Instance(backend.url)])
    pool.override({backend.url: Override(DRAINED)})
    return Client(Forwarder(pool)).get("/")


def _late(backend: Backend) -> Any:
    backend.answers = [lambda connection, request: connection.recv(1)]
    return _to(backend, read_timeout=0.05).get("/")


def _cut(backend: Backend) -> Any:
    backend.answers = [cut(b"HTTP/1.1 200 OK\r\n")]
    return _to(backend).get("/")


def _circle(backend: Backend) -> Any:
    return _to(backend).get("/", headers={"Via": "1.1 wsgigate"})


def _length_and_coding(backend: Backend) -> Any:
    return _to(backend).post("/", data=b"x", headers={"Transfer-Encoding": "chunked"})


def _other_coding(backend: Backend) -> Any:
    return _to(backend).post("/", environ_overrides={"HTTP_TRANSFER_ENCODING": "gzip"})


def _short(backend: Backend) -> Any:
    return _to(backend).post("/", data=b"four", environ_overrides={"CONTENT_LENGTH": "5"})


def _no_name(backend: Backend) -> Any:
    pool = Pool("orders", [Instance(f"http://{'a' * 64}.test")])
    return Client(Forwarder(pool)).get("/")


def _untrusted(backend: Backend) -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as folder:
        context.load_cert_chain(make_certificate(Path(folder)))
    with Backend(tls=lambda sock: context.wrap_socket(sock, True)) as secure:
        return _to(secure).get("/")


HAPPENINGS: dict[str, Callable[[Backend], Any]] = {
    "Nothing listens at the instance": _nothing_listens,
    "The instance's name cannot be resolved": _no_name,
    "The instance's certificate is not accepted": _untrusted,
    "The instance's connection limit is reached": _full,
    "The service has no instance that accepts requests": _no_instance,
    "All instances are drained or ejected by an operator": _all_drained,
    "The instance did not respond in time": _late,
    "The instance closed the connection, or its response is malformed": _cut,
    "The request has passed through this gateway before": _circle,
    "The request body has a length and a transfer coding": _length_and_coding,
    "The request body has a transfer coding other than chunked": _other_coding,
    "The request body ended early": _short,
}


@pytest.mark.parametrize(("what", "status", "message", "error"), table("error-table"))
def test_an_error_is_answered_as_the_table_says(
    what: str, status: str, message: str, error: str, backend: Backend
) -> None:
    answer = HAPPENINGS[what](backend)
    assert str(answer.status_code) == status
    assert answer.json["message"] == message
    assert answer.json.get("error", "") == error
    answer.close()


def test_every_setting_for_gunicorn_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f'store.url = "memory:"\n{NAMED["gateway.toml"].text}')
    monkeypatch.setattr("wsgigate.servers.gunicorn.last_valid", None)
    for name in settings(str(file)):
        assert f"``{name}" in PAGES["running.rst"], name


def test_every_middleware_of_the_file_has_its_place() -> None:
    for use in MIDDLEWARES:
        assert f'``use = "{use}"``' in PAGES["middlewares.rst"]


@pytest.mark.parametrize(
    "quota", ["100 per 15 minutes", "100/15m", "10/s", "1000 requests per day"]
)
def test_a_quota_can_be_written_as_shown(quota: str) -> None:
    assert f'"{quota}"' in " ".join(PAGES["limits.rst"].split())
    assert Quota.parse(quota).limit >= 10


@pytest.mark.parametrize(
    "key", ["address", "subject", "api-key", "header:NAME", "path:NAME", "route"]
)
def test_a_key_goes_by_the_name_shown(key: str) -> None:
    assert f'``"{key}"``' in PAGES["limits.rst"]
    assert callable(key_named(key))


def test_every_page_is_in_the_contents() -> None:
    contents = PAGES["index.rst"].partition(":hidden:")[2].split()
    included = {"reference", "environ", "safety_table", "server_keys", "metrics_names"}
    assert {file.stem for file in FOLDER.glob("*.rst")} - included == {*contents, "index"}
