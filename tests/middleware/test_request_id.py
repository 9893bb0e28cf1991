"""Every request has one id, which a client cannot use to write into a log."""

from __future__ import annotations

import gc
import io
import logging
import logging.config
import os
import re
import threading

import pytest

from wsgigate.http.wsgi import PEER_TRUSTED, REQUEST_ID, close_body
from wsgigate.middleware import request_id
from wsgigate.middleware.request_id import RequestId, RequestIdFilter
from wsgigate.testing import check_middleware
from wsgigate.testing.fakes import Server, new_environ


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ[REQUEST_ID]} {environ['HTTP_X_REQUEST_ID']}".encode()]


def get(middleware, sent=None, trusted=None):
    environ = new_environ()
    if sent is not None:
        environ["HTTP_X_REQUEST_ID"] = sent
    if trusted is not None:
        environ[PEER_TRUSTED] = trusted
    server = Server().serve(middleware, environ)
    (field,) = [value for name, value in server.headers if name == "X-Request-ID"]
    inside, header = b"".join(server.chunks).decode().split(" ")
    assert inside == header == field
    return field


def test_a_request_gets_an_id_of_its_own():
    middleware = RequestId(app)
    ids = {get(middleware) for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)


@pytest.mark.parametrize(
    ("accept", "trusted", "believed"),
    [
        ("trusted", None, False),
        ("trusted", False, False),
        ("trusted", True, True),
        ("always", None, True),
        ("always", True, True),
        ("never", True, False),
        ("never", None, False),
    ],
)
def test_request_ids_are_accepted_by_the_setting_and_the_peer(accept, trusted, believed):
    """L06."""
    middleware = RequestId(app, accept=accept, mint=lambda: "minted")
    assert get(middleware, "from-the-client", trusted) == (
        "from-the-client" if believed else "minted"
    )


@pytest.mark.parametrize(
    ("sent", "believed"),
    [
        ("a", True),
        ("A-b_c.9", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("x" * 5000, False),
        ("", False),
        ("<script>", False),
        ("a b", False),
        ("a\r\nSet-Cookie: x", False),
        ("a\n", False),
        ("a,b", False),
        ("a\x1b[31m", False),
        ("é", False),
        ("١", False),
    ],
)
def test_a_request_id_is_accepted_if_it_is_well_formed(sent, believed):
    """L06."""
    middleware = RequestId(app, accept="always", mint=lambda: "minted")
    assert get(middleware, sent) == (sent if believed else "minted")


def test_the_apps_own_field_gives_way():
    def echo(environ, start_response):
        start_response("200 OK", [("x-request-id", "backend"), ("X-REQUEST-ID", "again")])
        return []

    server = Server().serve(RequestId(echo, mint=lambda: "ours"))
    assert server.headers == [("X-Request-ID", "ours")]


def test_an_id_from_further_out_is_kept():
    middleware = RequestId(RequestId(app, mint=lambda: "inner"), mint=lambda: "outer")
    assert get(middleware) == "outer"


def test_the_field_can_have_another_name():
    def inside(environ, start_response):
        start_response("200 OK", [])
        return [environ["HTTP_X_TRACE"].encode()]

    environ = {**new_environ(), "HTTP_X_TRACE": "t1", "HTTP_X_REQUEST_ID": "other"}
    server = Server().serve(RequestId(inside, header="X-Trace", accept="always"), environ)
    assert server.headers == [("X-Trace", "t1")]
    assert server.chunks == [b"t1"]


def test_workers_forked_from_one_process_mint_different_ids():
    middleware = RequestId(app)
    get(middleware)
    ids = set()
    for _ in range(3):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(write, get(middleware).encode())
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(pid, 0)
        ids.add(os.read(read, 100))
        os.close(read)
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"header": ""}, "header"),
        ({"header": "X Request"}, "header"),
        ({"header": "X-A\r\n"}, "header"),
        ({"header": "Connection"}, "header"),
        ({"header": "content-length"}, "header"),
        ({"accept": "sometimes"}, 'accept is "trusted", "always" or "never"'),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RequestId(app, **settings)


@pytest.fixture
def filtered():
    """A log whose lines have the id of their request, and what it wrote."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(logging.Formatter("%(request_id)s %(message)s"))
    log = logging.getLogger("tests.shop")
    handler.addFilter(RequestIdFilter())
    log.addHandler(handler)
    log.propagate = False
    yield log, lines
    log.removeHandler(handler)
    handler.filters.clear()  # while a filter exists, RequestId wraps bodies


def test_the_apps_own_lines_have_the_id(filtered):
    log, lines = filtered

    class Body:
        def __iter__(self):
            log.warning("chunk")
            yield b"x"
            log.warning("last")

        def close(self):
            log.warning("close")

    def app(environ, start_response):
        log.warning("view")
        start_response("200 OK", [])
        return Body()

    stack = RequestId(app, accept="always")
    log.warning("before")
    for number in "12":
        environ = {**new_environ(), "HTTP_X_REQUEST_ID": number}
        body = stack(environ, lambda *_: None)
        log.warning("between")
        for _ in body:
            log.warning("server")
        close_body(body)
        close_body(body)
    told = [line.split() for line in lines.getvalue().splitlines()]
    assert told[0] == ["-", "before"]
    for number in "12":
        assert [what for who, what in told if who == number] == ["view", "chunk", "last", "close"]
    assert {what for who, what in told if who == "-"} == {"before", "between", "server"}


def test_a_request_that_fails_takes_its_id_along(filtered):
    log, lines = filtered

    def app(environ, start_response):
        log.warning("view")
        raise LookupError

    with pytest.raises(LookupError):
        RequestId(app, mint=lambda: "7")(new_environ(), lambda *_: None)
    log.warning("after")
    assert lines.getvalue() == "7 view\n- after\n"


def test_each_thread_has_its_own(filtered):
    log, lines = filtered
    barrier = threading.Barrier(2)

    def app(environ, start_response):
        barrier.wait(20)
        log.warning(environ["REQUEST_METHOD"])
        start_response("200 OK", [])
        return []

    stack = RequestId(app, accept="always")

    def quiet(*arguments):
        return None

    threads = [
        threading.Thread(
            target=lambda name=name: stack(
                {**new_environ(), "HTTP_X_REQUEST_ID": name, "REQUEST_METHOD": name}, quiet
            )
        )
        for name in ("A", "B")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lines.getvalue().splitlines()) == ["A A", "B B"]


def test_the_wsgi_contract_holds_with_a_filter(filtered):
    check_middleware(RequestId)


def test_the_filter_can_be_named_in_a_logging_configuration(filtered):
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"ids": {"()": "wsgigate.RequestIdFilter", "missing": "none"}},
            "handlers": {"null": {"class": "logging.NullHandler", "filters": ["ids"]}},
            "loggers": {"tests.configured": {"handlers": ["null"], "propagate": False}},
        }
    )
    record = logging.LogRecord("x", logging.INFO, "x", 1, "x", (), None)
    [handler] = logging.getLogger("tests.configured").handlers
    assert handler.filter(record)
    assert record.request_id == "none"  # type: ignore[attr-defined]
    handler.filters.clear()
    gc.collect()  # the configuration is a cycle that holds the filter


def test_the_context_is_set_only_while_there_is_a_filter():
    gc.collect()
    before = len(request_id.filters)
    kept = RequestIdFilter()
    assert len(request_id.filters) == before + 1
    del kept
    gc.collect()
    assert len(request_id.filters) == before
