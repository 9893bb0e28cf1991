"""any-of and all-of in the file: authenticators in the list ``of``, and errors at their keys."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from werkzeug.test import Client

import wsgigate
from tests.config.files import APP, built, errors_of
from tests.support.authenticators import HASH
from wsgigate import Identity, Problem
from wsgigate.auth.jwt import mint
from wsgigate.config.build import check_file
from wsgigate.config.load import read_file
from wsgigate.http.wsgi import IDENTITY, environ_key

SECRET = "a secret of the tests, thirty-two bytes or more"
BEARER = f'{{ use = "authenticator", algorithms = ["HS256"], secret = "{SECRET}" }}'
BASIC = '{ use = "basic", users_file = "users" }'
LIMIT = '[[routes.middleware]]\nuse = "limiter"\nquota = "1/h"\nkey = "subject"\n'
TOKEN = {"Authorization": f"Bearer {mint(SECRET, 'HS256', 'ann')}"}


def entry(use: str, *of: str, more: str = "") -> str:
    return f'[[routes.middleware]]\nuse = "{use}"\nof = [{", ".join(of)}]\n{more}'


def badge(app: Any, *, name: str, refuse: Any) -> Any:
    """Return an authenticator by a field, as a user of the package may write it."""
    missing = refuse(Problem(401, "No badge!"))

    def checked(environ: Any, start_response: Any) -> Any:
        value = environ.get(environ_key(name))
        if value is None:
            return missing(environ, start_response)
        environ[IDENTITY] = Identity(value, "badge")
        return app(environ, start_response)

    return checked


@pytest.fixture
def folder(site: ModuleType, tmp_path: Path) -> Path:
    (tmp_path / "users").write_text(f"bob:{HASH}\n")
    return tmp_path


def client(text: str, folder: Path) -> Client:
    return Client(built(APP + text, str(folder / "gateway.toml")))


def test_one_of_them_is_enough_and_its_caller_is_limited(folder: Path) -> None:
    app = client(entry("any-of", BEARER, BASIC) + LIMIT, folder)
    assert [app.get("/echo", headers=TOKEN).status_code for _ in range(2)] == [200, 429]
    assert app.get("/echo", auth=("bob", "secret")).status_code == 200
    answer = app.get("/echo")
    assert answer.status_code == 401
    schemes = [value.partition(" ")[0] for value in answer.headers.getlist("WWW-Authenticate")]
    assert schemes == ["Bearer", "Basic"]


def test_anonymous_requests_pass_where_the_route_says_so(folder: Path) -> None:
    app = client(entry("any-of", BEARER, BASIC, more="anonymous = true\n"), folder)
    assert app.get("/echo").status_code == 200
    assert app.get("/echo", auth=("bob", "wrong")).status_code == 401


def test_both_are_required_and_may_be_combined_again(folder: Path) -> None:
    factory = '{ use = "tests.config.test_combined:badge", name = "X-Badge" }'
    inner = f'{{ use = "any-of", of = [{BEARER}, {BASIC}] }}'
    app = client(entry("all-of", inner, factory, more="primary = 1\n"), folder)
    assert app.get("/echo", headers=TOKEN).status_code == 401
    assert app.get("/echo", headers={**TOKEN, "X-Badge": "7"}).status_code == 200
    assert app.get("/echo", headers={"X-Badge": "7"}).status_code == 401


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        (entry("any-of"), "of", "got an empty list"),
        ('[[routes.middleware]]\nuse = "any-of"\n', "of", "is required"),
        (entry("any-of", BEARER, "7"), "of[1]", 'such as { use = "api-key" }'),
        (entry("any-of", BEARER, '{ use = "bsic" }'), "of[1].use", 'did you mean "basic"?'),
        (entry("any-of", '{ use = "logger" }'), "of[0].use", "does not verify callers"),
        (
            entry("any-of", f'{{ use = "all-of", of = [{BEARER}, {{ use = "shedder" }}] }}'),
            "of[0].of[1].use",
            "does not verify callers",
        ),
        (entry("any-of", BASIC, BEARER.replace(SECRET, "x")), "of[1].secret", "bytes"),
        (
            entry("any-of", f'{{ use = "all-of", of = [{BEARER.replace(SECRET, "x")}] }}'),
            "of[0].of[0].secret",
            "bytes",
        ),
        (entry("any-of", BEARER, BASIC.replace("users_", "user_")), "of[1].user_file", "known key"),
        (entry("all-of", BEARER, more="primary = 1\n"), "primary", "0 to 0"),
        (entry("any-of", BEARER, more="anonymous = 1\n"), "anonymous", "expected true or false"),
        (entry("any-of", '{ use = "full_site:Stamp", text = "x" }'), "of[0]", "refuse"),
    ],
)
def test_an_error_names_its_key(folder: Path, text: str, key: str, problem: str) -> None:
    found = errors_of(APP + text)
    assert [path for path, _ in found if path.endswith(key)], found
    assert any(path == f"routes[0].middleware[0].{key}" and problem in it for path, it in found)


@pytest.mark.parametrize(
    ("use", "more", "warns"),
    [
        ("any-of", "", False),
        ("any-of", "anonymous = true\n", True),
        ("all-of", "", False),
    ],
)
def test_check_knows_whether_anonymous_requests_pass(
    folder: Path, use: str, more: str, warns: bool
) -> None:
    file = folder / "gateway.toml"
    file.write_text(APP + entry(use, BEARER, BASIC, more=more) + LIMIT)
    parsed = read_file(str(file))
    check_file(parsed, str(file)).gateway.close()
    assert any(path.endswith("middleware[1].key") for path, _ in parsed.warnings) is warns


@pytest.mark.parametrize(
    ("use", "more", "warns"),
    [
        ("any-of", "", True),
        ("any-of", ', header_field = "Remote-User"', False),
        ("all-of", "", False),
    ],
)
def test_check_knows_an_alternative_that_names_no_caller(
    folder: Path, use: str, more: str, warns: bool
) -> None:
    asking = f'{{ use = "forward-auth", address = "http://127.0.0.1:9"{more} }}'
    file = folder / "gateway.toml"
    file.write_text(APP + entry(use, BASIC, asking))
    key = "routes[0].middleware[0].of[1].header_field"
    assert (key in dict(read_file(str(file)).warnings)) is warns


def test_an_invalid_list_is_not_taken_for_one_without_api_keys(folder: Path) -> None:
    file = folder / "gateway.toml"
    for of, warns in ((BASIC, True), (f'{BASIC}, "api-key"', False)):
        file.write_text(APP + entry("any-of", of) + '[api_keys]\nfile = "keys.json"\n')
        assert ("api_keys" in dict(read_file(str(file)).warnings)) is warns


def test_check_reads_the_files_of_an_alternative(folder: Path) -> None:
    (folder / "users").write_text("bob:hunter2\n")
    file = folder / "gateway.toml"
    file.write_text(APP + entry("any-of", BEARER, BASIC))
    parsed = read_file(str(file))
    check_file(parsed, str(file)).gateway.close()
    [(path, _)] = parsed.warnings
    assert path == "routes[0].middleware[0].of[1].users_file"


def test_the_metadata_lists_the_issuers_of_alternatives(folder: Path) -> None:
    bearer = BEARER.replace("}", ', issuer = "https://id.example.com", audience = "shop" }')
    file = folder / "gateway.toml"
    resource = '[gateway]\nresource = "https://api.example.com"\n'
    file.write_text(APP + entry("any-of", bearer, BASIC) + resource)
    gateway = wsgigate.load(str(file))
    app = Client(gateway)
    challenge = app.get("/echo").headers["WWW-Authenticate"]
    url = challenge.partition('resource_metadata="https://api.example.com')[2].partition('"')[0]
    assert app.get(url).json["authorization_servers"] == ["https://id.example.com"]
    gateway.close()
