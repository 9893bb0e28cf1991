"""A gateway that wraps an app in its process: the fallback, rejections, and shares of a route."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from werkzeug import Response
from werkzeug.test import Client

import wsgigate
from wsgigate.cli import main
from wsgigate.config.errors import ConfigError
from wsgigate.testing.backend import Backend, reply

APP = Response("the app")


def mounted(folder: Path, text: str, **options) -> wsgigate.Gateway:
    file = folder / "gateway.toml"
    file.write_text(f'store.url = "memory:"\n{text}')
    return wsgigate.load(str(file), **{"fallback": APP, **options})


def route(url: str, *lines: str) -> str:
    keys = "\n".join(lines)
    return f"""
[services.orders]
instances = ["{url}"]
[[routes]]
path = "/orders"
service = "orders"
{keys}
"""


def test_the_app_gets_what_no_route_matches(tmp_path):
    with Backend(reply(b"the service")) as backend:
        gateway = mounted(tmp_path, route(backend.url))
        client = Client(gateway)
        assert [client.get(path).text for path in ("/", "/orders/7")] == ["the app", "the service"]
        gateway.close()


def test_the_app_renders_rejections_of_middlewares_and_routes(tmp_path):
    middleware = 'middleware = [{ use = "limiter", quota = "1/d" }]\n'
    gateway = mounted(
        tmp_path,
        middleware + route("http://127.0.0.1:9", 'methods = ["GET"]'),
        fallback=None,
        refuse=lambda problem: Response(f"rendered {problem.status}", problem.status),
    )
    client = Client(gateway)
    assert [client.get("/elsewhere").text for _ in range(2)] == ["rendered 404", "rendered 429"]
    assert client.get("/%00").text == "rendered 429"
    gateway.close()


@pytest.mark.parametrize(("percent", "service"), [("0", 0), ("100", 100), ("25", 25)])
def test_a_share_of_a_path_goes_to_the_service_and_the_rest_to_the_app(tmp_path, percent, service):
    with Backend(reply(b"the service")) as backend:
        lines = (f"percent = {percent}", 'split = { key = "header:X-User" }')
        gateway = mounted(tmp_path, route(backend.url, *lines))
        client = Client(gateway)

        def answers(user: int) -> str:
            found = {client.get("/orders", headers={"X-User": f"{user}"}).text for _ in range(2)}
            assert len(found) == 1, "a user stays where it is"
            return found.pop()

        counts = Counter(map(answers, range(100)))
        gateway.close()
    # which users are moved is a hash of their names: the numbers are the same in each run
    assert abs(counts["the service"] - service) <= (0 if service in (0, 100) else 10)
    assert counts.total() == 100


def test_the_app_gets_its_share_without_the_middlewares_of_the_route(tmp_path):
    lines = ("percent = 0", 'middleware = [{ use = "body-limit", limit = 1 }]')
    gateway = mounted(tmp_path, route("http://127.0.0.1:9", *lines))
    assert Client(gateway).post("/orders", data=b"more than one byte").text == "the app"
    gateway.close()


@pytest.mark.parametrize(
    ("lines", "fallback", "message"),
    [
        (("percent = 5",), None, "routes[0].percent: requires gateway.fallback"),
        (("percent = 101",), APP, "routes[0].percent: expected a number from 0 to 100"),
        (('split = { key = "address" }',), APP, "routes[0].split: requires services or percent"),
        (
            ("percent = 5", 'split = { key = "adress" }'),
            APP,
            "routes[0].split.key: key is one of",
        ),
    ],
)
def test_a_share_that_is_not_possible_is_an_error(tmp_path, lines, fallback, message):
    with pytest.raises(ConfigError) as caught:
        mounted(tmp_path, route("http://127.0.0.1:9", *lines), fallback=fallback)
    assert message in str(caught.value)


def test_a_fallback_in_the_file_contradicts_the_app_that_is_wrapped(tmp_path):
    with pytest.raises(ConfigError, match=r"gateway\.fallback: the fallback is the app"):
        mounted(tmp_path, '[gateway]\nfallback = "tests.config.test_mounted:APP"\n')


def test_the_command_routes_shows_the_share(tmp_path, capsys):
    fallback = '[gateway]\nfallback = "tests.config.test_mounted:APP"\n'
    file = tmp_path / "gateway.toml"
    file.write_text(fallback + route("http://127.0.0.1:9", "percent = 12.5"))
    assert main(["routes", str(file)]) == 0
    assert "orders -> http://127.0.0.1:9, 12.5 % of the requests" in capsys.readouterr().out
