"""The command line, called in this process and in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.files import BROKEN, SECRET, SHOP, Cli
from tests.support.certificates import make_certificate
from tests.support.issuer import FaultyIssuer
from wsgigate import __version__


def test_check_prints_a_summary_of_a_valid_file(cli: Cli) -> None:
    path = cli.file(SHOP)
    assert cli("check", path) == (0, f"{path}: ok: 1 service, 2 routes\n", "")


def test_check_prints_how_services_share_the_threads_of_a_worker(cli: Cli) -> None:
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


def test_check_prints_all_errors_and_warnings_and_exits_with_2(cli: Cli) -> None:
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


def test_check_reports_an_unusable_store(cli: Cli) -> None:
    (cli.folder / "taken").write_text("")
    path = cli.file('[store]\nurl = "lmdb:taken"\n')
    code, _, err = cli("check", path)
    assert code == 2
    assert f"{path}: store.url: " in err


def test_check_warns_about_a_damaged_store_and_does_not_change_it(cli: Cli) -> None:
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


def test_check_warns_about_an_unreachable_redis_and_a_gateway_without_a_name(cli: Cli) -> None:
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
def test_an_unreadable_file_is_one_line(
    cli: Cli, command: tuple[str], name: str, said: str
) -> None:
    path = str(cli.folder / name)
    code, out, err = cli(*command, path)
    assert (code, out) == (2, "")
    assert err.startswith(f"{path}: cannot be read: {said}")
    assert err.count("\n") == 1


def test_schema_is_json(cli: Cli) -> None:
    code, out, _ = cli("schema")
    assert code == 0
    assert json.loads(out)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_granian_does_not_serve_a_route_that_keeps_encoded_slashes(cli: Cli) -> None:
    path = 'path = "/api/users/{id}"'
    assert path in SHOP
    keeping = SHOP.replace(path, path + '\nencoded_slash = "keep"')
    for command in ("run", "check"):
        code, _, err = cli(command, cli.file(keeping), "--server", "granian")
        assert code == 2
        assert "the route '/api/users/{id}' keeps encoded slashes" in err


def test_granian_does_not_serve_client_certificates(cli: Cli, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    table = f'[gateway]\ntls = {{ cert = "{certificate}", client_ca = "{certificate}" }}\n'
    path = cli.file(f'{table}[store]\nurl = "memory:"\n')
    for command in ("run", "check"):
        code, _, err = cli(command, path, "--server", "granian")
        assert (code, "gateway.tls.client_ca: " in err, "gunicorn" in err) == (2, True, True), err


def test_granian_does_not_serve_http_2(cli: Cli, tmp_path: Path) -> None:
    """One HTTP/2 connection could occupy all threads of a worker with incomplete bodies."""
    certificate = make_certificate(tmp_path)
    table = f'http2 = true\ntls = {{ cert = "{certificate}", key = "{certificate}" }}\n'
    wanted = cli.file(f"[gateway]\n{table}[store]\nurl = 'memory:'\n")
    for command in ("run", "check"):
        code, _, err = cli(command, wanted, "--server", "granian")
        assert (code, "bodies never arrive" in err, "gunicorn" in err) == (2, True, True), err
    assert cli("check", wanted)[0] == 0
    warned = cli.file(f'[gateway]\nself_check = "warn"\n{table}[store]\nurl = "memory:"\n')
    code, _, err = cli("check", warned, "--server", "granian")
    assert (code, "warning: gateway.http2: " in err) == (0, True)


def test_a_key_that_granian_does_not_apply_is_a_warning_with_its_cure(cli: Cli) -> None:
    table = "[gateway]\nmax_connections_per_client = 9\nkeep_alive = 0\nhead_timeout = '5s'\n"
    limited = cli.file(f"{table}[store]\nurl = 'memory:'\n")
    code, _, err = cli("check", limited, "--server", "granian")
    assert code == 0
    assert "warning: gateway.max_connections_per_client: under granian one address" in err
    assert "run under gunicorn" in err
    assert "keep_alive" not in err
    assert "head_timeout" not in err
    assert "max_connections" not in cli("check", limited)[2]


def test_granian_does_not_run_an_invalid_file(cli: Cli) -> None:
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
def test_overrides_of_run_are_checked_like_the_file(cli: Cli, bind: str, said: str) -> None:
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
def test_help_shows_a_minimal_file_and_the_next_commands(
    cli: Cli, argv: list[str], said: str
) -> None:
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


def test_an_invalid_file_is_not_run(
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


def test_check_warns_of_issuers_that_do_not_answer_and_offline_asks_none(cli: Cli) -> None:
    with FaultyIssuer() as issuer:
        issuer.mode = "error"
        path = cli.file(
            '[store]\nurl = "memory:"\n[[routes]]\npath = "/"\n'
            'app = "wsgiref.simple_server:demo_app"\n'
            f'middleware = [{{ use = "authenticator", issuer = "{issuer.url}" }}]\n'
        )
        code, out, err = cli("check", path)
        assert code == 0
        assert f"{path}: warning: routes[0].middleware[0]: the keys of {issuer.url} cannot" in err
        asked = len(issuer.requests)
        assert cli("check", "--offline", path) == (0, out, "")
        assert len(issuer.requests) == asked > 0


def test_check_offline_does_not_ask_a_store_on_another_machine(cli: Cli) -> None:
    path = cli.file('[store]\nurl = "redis://127.0.0.1:1/0"\n[gateway]\nname = "shop"\n')
    assert "warning: store.url" in cli("check", path)[2]
    assert "store.url" not in cli("check", "--offline", path)[2]
