"""The public safety cases for WSGI proxies, and the forwarder checked by them."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest

from wsgigate.client.adapter import Sessions
from wsgigate.discovery import Instance
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.testing.proxy import CASES, Case, ProxyUnderTest, check_proxy

Make = Callable[..., WSGIApplication]


@pytest.fixture
def make(sessions: Sessions) -> Make:
    def make(url: str, **options: Any) -> WSGIApplication:
        return Forwarder(Pool("svc", [Instance(url)]), sessions=sessions, **options)

    return make


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_forwarder_is_safe(case: Case, make: Make) -> None:
    case.check(make)


def test_every_rule_has_its_cases() -> None:
    assert {case.rule for case in CASES} == set(range(1, 11))
    assert len({case.id for case in CASES}) == len(CASES)
    assert all(case.says.endswith(".") for case in CASES)


def test_the_table_of_the_documentation_is_of_these_cases() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "safety_table.rst").read_text().splitlines()
    rows = [at for at, line in enumerate(lines) if line[7:] in {case.says for case in CASES}]
    assert len(rows) == len(CASES)
    assert all(lines[at + 1].strip() == "- yes" for at in rows)


def naive(url: str, *, patience: float = 0.5) -> WSGIApplication:
    """A proxy as one writes it in ten minutes.

    :param patience: Seconds that it waits for an instance; it waits in vain in several cases.
    """

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        fields = {
            key[5:].replace("_", "-").title(): value
            for key, value in environ.items()
            if key.startswith("HTTP_")
        }
        body = environ["wsgi.input"].read()
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=patience)
        try:
            connection.request(environ["REQUEST_METHOD"], environ["PATH_INFO"], body, fields)
            with connection.getresponse() as response:
                start_response(f"{response.status} {response.reason}", response.getheaders())
                return [response.read()]
        finally:
            connection.close()

    return app


def test_the_cases_that_a_naive_proxy_fails_are_named() -> None:
    with pytest.raises(AssertionError) as caught:
        check_proxy(naive)
    text = str(caught.value)
    for id in ("dot-segments", "early-hints", "request-hop-by-hop", "httpoxy", "upload-held-back"):
        assert f"\n{id}: " in text
    assert "identity-forged" not in text  # it has no such option
    patient = partial(naive, patience=30.0)
    for case in CASES:
        if case.id in ("several-cookies", "compressed"):
            case.check(patient)


def test_check_proxy_accepts_a_safe_proxy(make: Make) -> None:
    check_proxy(make)


def test_a_case_for_an_unsupported_option_raises_not_implemented_error() -> None:
    [case] = [case for case in CASES if case.id == "identity-forged"]

    def without(url: str, **options: Any) -> WSGIApplication:
        raise NotImplementedError(str(sorted(options)))

    with pytest.raises(NotImplementedError, match="identity"):
        case.check(without)


def test_an_app_that_raises_counts_as_a_500(make: Make) -> None:
    def failing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise OSError("no")

    seen: list[object] = []

    def script(exchange: ProxyUnderTest) -> None:
        answer = exchange.send()
        seen.extend([answer.status, str(answer.raised)])

    Case("raising", 1, "It is.", script).check(lambda url: failing)
    assert seen == [500, "no"]
