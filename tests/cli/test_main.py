"""The command line, called in this process and as one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest

from tests.support.certificates import make_certificate
from wsgigate import __version__
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


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("SHOP_SECRET", SECRET)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Cli(tmp_path, capsys)


def test_check_says_what_a_good_file_holds(cli: Cli) -> None:
    path = cli.file(SHOP)
    assert cli("check", path) == (0, f"{path}: ok: 1 service, 2 routes\n", "")


def test_check_says_how_services_share_the_threads_of_a_worker(cli: Cli) -> None:
    path = cli.file(
        "[gateway]\nthreads = 8\n"
        + "".join(
            f"[services.{name}]\ninstances = ['http://127.0.0.1:9']\n{limit}\n"
            f"[[routes]]\npath = '/{name}'\nservice = '{name}'\n"
            for name, limit in (
                ("orders", ""),
                ("reports", "max_in_flight = 3"),
                ("items", ""),
                ("files", "max_in_flight = 0"),
            )
        )
    )
    code, out, err = cli("check", path)
    assert (code, err) == (0, "")
    assert out.splitlines()[1:] == [
        f"{path}: 8 threads per worker, of which a service holds at most 5: items, orders; further "
        "requests wait, and get a 503 only while the service is slow and no other thread is free",
        f"{path}: services.files.max_in_flight: no limit",
        f"{path}: services.reports.max_in_flight: at most 3 requests in flight per worker",
    ]


def test_check_tells_every_error_and_warning_and_exits_with_2(cli: Cli) -> None:
    path = cli.file(BROKEN)
    code, out, err = cli("check", path)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"{path}: warning: services.users: no route leads to it",
        f"{path}: gateway.bind: expected an address such as "
        '"127.0.0.1:3000", "[::1]:3000" or "unix:/run/gateway.sock", got "localhost"',
        f'{path}: services.users.timeout: expected a duration such as "30s", got "soon"',
        f"{path}: services.users: needs instances or discover",
        f"{path}: routes[0].app: not_there cannot be imported: "
        "ModuleNotFoundError: No module named 'not_there'",
    ]


def test_check_looks_whether_the_store_can_be_used(cli: Cli) -> None:
    (cli.folder / "taken").write_text("")
    path = cli.file('[store]\nurl = "lmdb:taken"\n')
    code, _, err = cli("check", path)
    assert code == 2
    assert f"{path}: store.url: " in err


def test_check_warns_of_a_damaged_store_and_leaves_it(cli: Cli) -> None:
    (cli.folder / "data").mkdir(mode=0o700)
    (cli.folder / "data" / "data.mdb").write_bytes(bytes(5000))
    path = cli.file('[store]\nurl = "lmdb:data"\n[admin]\n')
    code, _, err = cli("check", path)
    assert code == 0
    assert f"{path}: warning: store.url: {cli.folder}/data/data.mdb is damaged" in err
    assert "a gateway that opens it moves it aside" in err
    assert sorted(each.name for each in (cli.folder / "data").iterdir()) == [
        "data.mdb",
        "lock.mdb",
    ]


def test_check_looks_whether_a_redis_can_be_reached_and_whose_names_it_holds(cli: Cli) -> None:
    path = cli.file('[store]\nurl = "redis://127.0.0.1:1/0"\n[admin]\n')
    code, out, err = cli("check", path)
    warning, outage = err.splitlines()
    assert code == 0  # an outage: a gateway that starts meanwhile serves without its store
    assert out == f"{path}: ok: 0 services, 0 routes\n"
    assert warning.startswith(f"{path}: warning: gateway.name: all gateways without a name ")
    assert outage.startswith(f"{path}: warning: store.url: the store redis://127.0.0.1:1/0 fails: ")
    assert outage.endswith("; the gateway starts without its store and uses it once it answers")
    for more in ('?prefix=mine"\n[admin]\n', '"\n[admin]\n[gateway]\nname = "shop"\n'):
        path = cli.file(f'[store]\nurl = "redis://127.0.0.1:1/0{more}')
        assert "without a name" not in cli("check", path)[2]


@pytest.mark.parametrize("command", [("check",), ("routes",), ("token",)])
@pytest.mark.parametrize(
    ("name", "said"), [("missing.toml", "No such file"), ("", "Is a directory")]
)
def test_a_file_that_can_not_be_read_is_one_clear_line(
    cli: Cli, command: tuple[str], name: str, said: str
) -> None:
    path = str(cli.folder / name)
    code, out, err = cli(*command, path)
    assert (code, out) == (2, "")
    assert err.startswith(f"{path}: cannot be read: {said}")
    assert err.count("\n") == 1


def test_routes_is_a_table_of_all_that_is_served(cli: Cli) -> None:
    code, out, err = cli("routes", cli.file(SHOP))
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["METHODS", "HOST", "PATH", "MIDDLEWARES", "TO"]
    assert ["GET", "any", "/_gateway/health", "-", "the", "gateway", "itself"] in rows
    assert [
        *("GET,PUT", "any", "/api/users/{id}/...", "authenticator", "users", "->"),
        *("http://127.0.0.1:3001,", "http://127.0.0.1:3002", "(/api", "becomes", "/v1)"),
    ] in rows
    app = "wsgiref.simple_server:demo_app"
    assert ["any", "old.example.com", "/old", "-", app] in rows
    assert ["any", "any", "all", "else", "-", app] in rows
    assert out.endswith("\nbefore all of them: limiter\n")


@pytest.mark.parametrize(
    ("method", "url", "code", "lines"),
    [
        (
            "get",
            "http://shop.example:3000//api/%75sers/a%20b?x=%31",
            0,
            [
                "target       GET /api/users/a%20b?x=%31",
                "host         shop.example",
                "route        /api/users/{id}   (routes[0])",
                "parameter    id = a b",
                "middlewares  client-address, request-id, limiter (100 per 15 minutes), "
                "authenticator",
                "service      users",
                "upstream     GET http://127.0.0.1:3001/v1/users/a%20b?x=%31",
                "upstream     GET http://127.0.0.1:3002/v1/users/a%20b?x=%31",
            ],
        ),
        (
            "DELETE",
            "/api/users/7",
            0,
            [
                "target       DELETE /api/users/7",
                "host         localhost",
                "route        none matches",
                "middlewares  client-address, request-id, limiter (100 per 15 minutes)",
                "app          wsgiref.simple_server:demo_app (the fallback)",
            ],
        ),
        ("GET", "/a/../b", 1, ["refused      400: a dot segment in the path"]),
        ("GET", "/api%2Fusers/7", 1, ["refused      400: an encoded slash in the path"]),
        ("TRACE", "/", 1, ["refused      405: TRACE is never forwarded"]),
        (
            "GET",
            "http://old.example.com/old",
            0,
            [
                "target       GET /old",
                "host         old.example.com",
                "route        /old   (routes[1])",
                "middlewares  client-address, request-id, limiter (100 per 15 minutes)",
                "app          wsgiref.simple_server:demo_app",
            ],
        ),
        (
            "GET",
            "/elsewhere",
            0,
            [
                "target       GET /elsewhere",
                "host         localhost",
                "route        none matches",
                "middlewares  client-address, request-id, limiter (100 per 15 minutes)",
                "app          wsgiref.simple_server:demo_app (the fallback)",
            ],
        ),
        (
            "GET",
            "/_gateway/discover/users",
            0,
            [
                "target       GET /_gateway/discover/users",
                "host         localhost",
                "route        /_gateway/discover/{name}",
                "parameter    name = users",
                "middlewares  client-address, request-id, limiter (100 per 15 minutes)",
                "app          the gateway itself",
            ],
        ),
    ],
)
def test_explain_tells_what_becomes_of_a_request(
    cli: Cli, method: str, url: str, code: int, lines: list[str]
) -> None:
    found, out, err = cli("explain", cli.file(SHOP), method, url)
    assert (found, err) == (code, "")
    assert out.splitlines() == lines


def test_explain_says_when_nothing_matches(cli: Cli) -> None:
    text = SHOP.replace('fallback = "wsgiref.simple_server:demo_app"', "")
    code, out, _ = cli("explain", cli.file(text), "GET", "/elsewhere")
    assert code == 1
    assert out.endswith("refused      404: no route matches\n")


def test_a_service_whose_instances_are_sought_is_told_by_its_source(cli: Cli) -> None:
    file = cli.file(
        '[services.users]\ndiscover = "file:users.json"\n'
        '[[routes]]\npath = "/api"\nservice = "users"\nstrip_prefix = true\n'
    )
    assert "users -> file:users.json (/api becomes /)" in cli("routes", file)[1]
    lines = cli("explain", file, "GET", "/api/7")[1].splitlines()
    assert lines[-3:] == [
        "service      users",
        "found by     file:users.json",
        "upstream     GET http://instance/7",
    ]


def test_explain_shows_all_that_is_limited(cli: Cli) -> None:
    limits = (
        'quota = ["9/s", "90/h"]\nplans = { big = ["99/s", "1 per calendar day"] }\n'
        'plan = "header:X-Plan"\nobserve = true\n'
        '[[middleware]]\nuse = "concurrency-limiter"\nlimit = 7'
    )
    text = SHOP.replace('quota = "100 per 15 minutes"', limits)
    code, out, _ = cli("explain", cli.file(text), "GET", "/elsewhere")
    assert code == 0
    assert (
        "limiter (9 per second, 90 per hour; big: 99 per second, 1 per calendar day; "
        "only observed), concurrency-limiter (7 at a time)"
    ) in out


def test_explain_says_which_hosts_are_not_served(cli: Cli) -> None:
    text = SHOP.replace("[gateway]", '[gateway]\nallowed_hosts = ["a.test"]', 1)
    code, out, _ = cli("explain", cli.file(text), "GET", "/elsewhere")
    assert code == 1
    assert out.endswith("refused      421: the host is not in gateway.allowed_hosts\n")


def test_explain_needs_a_good_file(cli: Cli) -> None:
    code, _, err = cli("explain", cli.file(BROKEN), "GET", "/")
    assert code == 2
    assert "services.users.timeout" in err


def decoded(token: str, secret: str = SECRET) -> dict[str, object]:
    claims: dict[str, object] = jwt.decode(
        token, secret, algorithms=["HS256"], options={"verify_aud": False}
    )
    return claims


def test_token_is_one_that_the_files_authenticator_takes(cli: Cli) -> None:
    code, out, err = cli(
        *("token", cli.file(SHOP), "--sub", "7", "--expires", "5m"),
        *("--claim", "role=admin", "--claim", "groups=[1, 2]"),
    )
    assert (code, err) == (0, "")
    claims = decoded(out.strip())
    issued, until = claims.pop("iat"), claims.pop("exp")
    assert isinstance(issued, int)
    assert until == issued + 300
    assert claims == {
        "sub": "7",
        "iss": "https://id.example.com",
        "aud": "shop",
        "scope": "users",
        "role": "admin",
        "groups": [1, 2],
    }


def test_token_has_the_claims_that_the_file_requires(cli: Cli) -> None:
    required = '{ token_type = "access", tenant = ["a", "b"], level = 3 }'
    text = (
        f'[[middleware]]\nuse = "authenticator"\nalgorithms = ["HS256"]\nsecret = "{SECRET}"\n'
        f"required_claims = {required}\n"
    )
    code, out, err = cli("token", cli.file(text))
    assert code == 0, err
    claims = decoded(out.strip())
    assert (claims["token_type"], claims["tenant"], claims["level"]) == ("access", "a", 3)


def test_token_without_a_file_takes_the_secret_of_a_variable(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = cli("token", "--secret-env", "SHOP_SECRET")
    assert code == 0
    assert decoded(out.strip())["sub"] == "test"
    monkeypatch.delenv("SHOP_SECRET")
    code, out, err = cli("token", "--secret-env", "SHOP_SECRET")
    assert (code, out) == (2, "")
    assert "the environment variable SHOP_SECRET is not set" in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--claim", "role"], "--claim: expected NAME=VALUE, got 'role'"),
        (["--expires", "soon"], "expected a duration"),
        (["--secret-env", "SHORT"], "HS256 needs at least 32"),
    ],
)
def test_token_says_what_it_can_not_do(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, argv: list[str], said: str
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setenv("SHORT", "hunter2")
    code, out, err = cli("token", *argv)
    assert (code, out) == (2, "")
    assert said in err
    assert "hunter2" not in err


def test_token_needs_an_authenticator_with_a_secret(cli: Cli) -> None:
    code, _, err = cli("token", cli.file(""))
    assert code == 2
    assert "has no authenticator with a secret (HS256, HS384 or HS512)" in err


def test_schema_is_json(cli: Cli) -> None:
    code, out, _ = cli("schema")
    assert code == 0
    assert json.loads(out)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_granian_does_not_serve_a_route_that_keeps_encoded_slashes(cli: Cli) -> None:
    path = 'path = "/api/users/{id}"'
    assert path in SHOP
    keeping = SHOP.replace(path, path + '\nencoded_slash = "keep"')
    code, _, err = cli("run", cli.file(keeping), "--server", "granian")
    assert code == 2
    assert "the route '/api/users/{id}' keeps encoded slashes" in err


def test_granian_does_not_serve_http_2(cli: Cli, tmp_path: Path) -> None:
    """One connection holds all threads of a worker by bodies that never come."""
    certificate = make_certificate(tmp_path)
    table = f'http2 = true\ntls = {{ cert = "{certificate}", key = "{certificate}" }}\n'
    wanted = cli.file(f"[gateway]\n{table}[store]\nurl = 'memory:'\n")
    for command in ("run", "check"):
        code, _, err = cli(command, wanted, "--server", "granian")
        assert (code, "bodies never arrive" in err, "gunicorn" in err) == (2, True, True), err
    assert cli("check", wanted)[0] == 0
    warned = cli.file(f'[gateway]\nself_check = "warn"\n{table}[store]\nurl = "memory:"\n')
    code, _, err = cli("check", warned, "--server", "granian")
    assert (code, "warning: http2" in err) == (0, True)


def test_a_broken_file_is_not_run_by_granian_either(cli: Cli) -> None:
    code, _, err = cli("run", cli.file("[gateway]\nthreads = 0\n"), "--server", "granian")
    assert code == 2
    assert "gateway.threads" in err


@pytest.mark.parametrize(
    ("bind", "said"),
    [
        ("localhost", "--bind: expected an address such as"),
        ("unix:/run/gateway.sock", 'add "unix" to gateway.trusted_proxies'),
    ],
)
def test_an_address_to_listen_on_is_held_to_what_the_file_is(
    cli: Cli, bind: str, said: str
) -> None:
    code, _, err = cli("run", cli.file(SHOP), "--bind", bind)
    assert code == 2
    assert said in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "COMMAND"),
        (["chek", "x"], "invalid choice: 'chek'"),
        (["run", "x", "--workers", "0"], "--workers: expected a whole number from 1 to 1024"),
        (
            ["run", "x", "--workers", "100000"],
            "--workers: expected a whole number from 1 to 1024 "
            "(each is a process of tens of MiB), got '100000'",
        ),
        (["run", "x", "--workers", "1e3"], "--workers: expected a whole number"),
        (["run", "x", "--workers", "1_0"], "--workers: expected a whole number"),
        (["run", "x", "--workers", "9" * 5000], "--workers: expected a whole number"),
        (["run", "x", "--threads", "-3"], "--threads: expected a whole number from 1 to 4096"),
        (["run", "x", "--threads", "4097"], "--threads: expected a whole number from 1 to 4096"),
        (["registry", "--workers", "1025"], "--workers: expected a whole number from 1 to 1024"),
        (["registry", "--threads", "0"], "--threads: expected a whole number from 1 to 4096"),
        (["register", "--port", "65536"], "--port: expected a whole number from 1 to 65535"),
        (["register", "--port", "0"], "--port: expected a whole number from 1 to 65535"),
        (["register", "--listens", "70000"], "--listens: expected a whole number from 1 to 65535"),
        (["register", "--weight", "65536"], "--weight: expected a whole number from 0 to 65535"),
        (["register", "--weight", "-1"], "--weight: expected a whole number from 0 to 65535"),
        (["register", "--drain", "301s"], "--drain: expected at most 5 minutes, got '301s'"),
        (["register", "--drain", "soon"], "--drain: expected a duration"),
        (["explain", "x"], "METHOD, URL"),
    ],
)
def test_a_wrong_command_line_exits_with_2(cli: Cli, argv: list[str], said: str) -> None:
    code, _, err = cli(*argv)
    assert code == 2
    assert said in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--help"], "wsgigate explain gateway.toml GET /api/orders/7"),
        (["token", "--help"], 'curl -H "Authorization: Bearer $(wsgigate token'),
        (["run", "--help"], "SIGHUP reloads the file"),
        (["--version"], f"wsgigate {__version__}"),
    ],
)
def test_help_teaches(cli: Cli, argv: list[str], said: str) -> None:
    code, out, _ = cli(*argv)
    assert code == 0
    assert said in out


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "wsgigate", *argv],
            cwd=tmp_path,
            env={**os.environ, "SHOP_SECRET": SECRET},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_apps_beside_the_file_are_found(
    tmp_path: Path, process: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "my_site.py").write_text("def app(environ, start): ...\n")
    (tmp_path / "gateway.toml").write_text(SHOP.replace("wsgiref.simple_server:demo_", "my_site:"))
    done = process("check", "gateway.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "gateway.toml: ok: 1 service, 2 routes\n"


def test_a_broken_file_is_not_run(
    tmp_path: Path, process: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "gateway.toml").write_text(BROKEN)
    done = process("run", "gateway.toml")
    assert done.returncode == 2
    assert "services.users.timeout: expected a duration" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_stops_reading_is_no_error(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "wsgigate", "schema"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 141
