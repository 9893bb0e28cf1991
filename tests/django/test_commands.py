"""The system checks, and the management commands of a project."""

from __future__ import annotations

import io
import json

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command

from tests.support.ports import refused_port

GATE = "wsgigate.django.GateMiddleware"
IDENTITY = "wsgigate.django.IdentityMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
BACKEND = ["wsgigate.django.backends.IdentityBackend"]

GATEWAY = {
    "SERVICES": {"orders": {"instances": ["http://127.0.0.1:3001"]}},
    "ROUTES": [
        {
            "path": "/api/orders",
            "service": "orders",
            "middleware": [{"use": "wsgigate.django:DjangoSession"}],
        }
    ],
}


def found(**options) -> list[str]:
    return sorted(str(each.id) for each in run_checks(tags=["wsgigate"], **options))


@pytest.mark.parametrize(
    ("middleware", "settings", "ids"),
    [
        ([GATE], {"WSGIGATE": GATEWAY}, []),
        ([], {"WSGIGATE": None}, []),
        ([GATE], {"WSGIGATE": None}, ["wsgigate.E001"]),
        ([], {"WSGIGATE": {"ROUTE": [], "SERVICES": 7}}, ["wsgigate.E001"] * 2),
        ([IDENTITY], {}, ["wsgigate.E002"]),
        ([IDENTITY, SESSIONS, AUTHENTICATION], {}, ["wsgigate.E002"]),
        ([SESSIONS, AUTHENTICATION, IDENTITY], {}, []),
        (
            [SESSIONS, AUTHENTICATION, IDENTITY, GATE],
            {"WSGIGATE": GATEWAY},
            ["wsgigate.E003", "wsgigate.W002"],
        ),
        ([GATE, GATE], {"WSGIGATE": GATEWAY}, ["wsgigate.E004"]),
        ([SESSIONS, GATE], {"WSGIGATE": GATEWAY}, ["wsgigate.W002"]),
        (
            [SESSIONS, AUTHENTICATION, IDENTITY],
            {"AUTHENTICATION_BACKENDS": ["django.contrib.auth.backends.ModelBackend"]},
            ["wsgigate.W003"],
        ),
        (
            [GATE],
            {
                "WSGIGATE": GATEWAY,
                "SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https"),
            },
            ["wsgigate.W004"],
        ),
        (
            [GATE],
            {
                "WSGIGATE": {**GATEWAY, "GATEWAY": {"trusted_proxies": ["10.0.0.0/8"]}},
                "SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https"),
            },
            [],
        ),
        ([GATE], {"WSGIGATE": {"FILE": "gone.toml"}}, ["wsgigate.E001"]),
        ([GATE], {"WSGIGATE": ["wsgigate.Limitr", "gone.Away"]}, ["wsgigate.E001"] * 2),
        ([GATE], {"WSGIGATE": [("wsgigate.Limiter", {"quota": "0"})]}, ["wsgigate.E001"]),
        (
            [GATE],
            {"WSGIGATE": {**GATEWAY, "MIDDLEWARE": ["wsgigate.Limitr"]}},
            ["wsgigate.E001"],
        ),
        (["nowhere.Middleware", GATE], {"WSGIGATE": GATEWAY}, []),
    ],
)
def test_mistakes_of_the_settings_are_found(project, middleware, settings, ids) -> None:
    project({}, **{"MIDDLEWARE": middleware, "AUTHENTICATION_BACKENDS": BACKEND, **settings})
    assert found() == ids


def test_a_check_opens_no_store(project, tmp_path) -> None:
    store = tmp_path / "store"
    project({}, WSGIGATE={**GATEWAY, "STORE": {"url": f"lmdb:{store}"}})
    assert found() == []
    called("gateway_routes")
    assert not store.exists()
    called("gateway_check", "--offline")
    assert store.exists()


def test_what_matters_in_production_is_found_by_deploy(project) -> None:
    project({}, WSGIGATE={**GATEWAY, "STORE": {"url": "memory:"}}, SESSION_COOKIE_SECURE=False)
    assert found() == []
    assert found(include_deployment_checks=True) == ["wsgigate.W005", "wsgigate.W006"]


def called(name: str, *arguments: str) -> tuple[str, str]:
    out, error = io.StringIO(), io.StringIO()
    call_command(name, *arguments, stdout=out, stderr=error)
    return out.getvalue(), error.getvalue()


def test_gateway_check_counts_what_it_has_checked(project) -> None:
    project({}, WSGIGATE={"MIDDLEWARE": ["wsgigate.RequestId"], **GATEWAY})
    out, error = called("gateway_check", "--offline")
    assert (out, error) == ("ok: 1 middleware, 1 service, 1 route\n", "")
    report = json.loads(called("gateway_check", "--offline", "--json")[0])
    assert report == {
        "ok": True, "middlewares": 1, "services": 1, "routes": 1, "errors": [], "warnings": [],
    }  # fmt: skip


def test_gateway_check_reports_all_errors_and_exits_with_2(project) -> None:
    project({}, WSGIGATE={"ROUTE": [], "ROUTES": [{"path": "/api", "service": "gone"}]})
    out, error = io.StringIO(), io.StringIO()
    with pytest.raises(CommandError, match="WSGIGATE has 2 errors") as raised:
        call_command("gateway_check", "--json", stdout=out, stderr=error)
    assert raised.value.returncode == 2
    report = json.loads(out.getvalue())
    assert not report["ok"]
    assert [each["where"] for each in report["errors"]] == [
        "WSGIGATE['ROUTE']",
        'WSGIGATE["ROUTES"][0].service',
    ]
    with pytest.raises(CommandError):
        call_command("gateway_check", stdout=out, stderr=error)
    assert "error: WSGIGATE['ROUTE']: is not a known key" in error.getvalue()


def test_gateway_check_warns_of_an_issuer_that_cannot_be_reached(project) -> None:
    with refused_port() as port:
        jwks = f"http://127.0.0.1:{port}/jwks"
        authenticator = {"use": "authenticator", "algorithms": ["RS256"], "jwks": jwks}
        project({}, WSGIGATE={"MIDDLEWARE": [authenticator]})
        assert 'warning: WSGIGATE["MIDDLEWARE"][0]: the keys of' in called("gateway_check")[1]
        assert called("gateway_check", "--offline")[1] == ""


def test_gateway_routes_lists_who_serves_what(project) -> None:
    project({}, WSGIGATE=GATEWAY)
    out, _ = called("gateway_routes")
    lines = [line.split() for line in out.splitlines()]
    assert lines == [
        ["METHODS", "HOST", "PATH", "MIDDLEWARES", "TO"],
        ["any", "any", "/api/orders/...", "wsgigate.django:DjangoSession", "orders", "->",
         "http://127.0.0.1:3001"],
        ["any", "any", "all", "else", "-", "Django"],
    ]  # fmt: skip
    rows = json.loads(called("gateway_routes", "--json")[0])
    assert [row["to"] for row in rows] == ["orders -> http://127.0.0.1:3001", "Django"]


def test_gateway_routes_of_a_project_without_a_gateway(project) -> None:
    project({}, WSGIGATE=["wsgigate.RequestId"])
    assert called("gateway_routes")[0] == "WSGIGATE has no routes: Django serves every request\n"
    assert called("gateway_routes", "--json")[0] == "[]\n"


def test_gateway_routes_of_a_wrong_setting_exits_with_2(project) -> None:
    project({}, WSGIGATE={"ROUTE": []})
    with pytest.raises(CommandError, match="did you mean") as raised:
        call_command("gateway_routes")
    assert raised.value.returncode == 2
