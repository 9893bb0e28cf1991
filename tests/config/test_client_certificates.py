"""Client certificates in the file: where they come from, and what check says about it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from werkzeug.test import Client

from tests.config.files import APP, MEMORY, built, errors_of
from tests.support.certificates import Authority
from wsgigate.config.build import check_file
from wsgigate.config.load import parse, read_file
from wsgigate.servers.granian import check
from wsgigate.servers.gunicorn import settings

CERTIFICATE = '[[routes.middleware]]\nuse = "client-certificate"\n'
PROXIED = '[gateway]\ntrusted_proxies = ["127.0.0.1"]\n'
XFCC = {"X-Forwarded-Client-Cert": f"Hash={'ab' * 32};Subject=CN=orders"}


@pytest.fixture
def folder(site: ModuleType, tmp_path: Path) -> Path:
    Authority(tmp_path)
    return tmp_path


def test_a_trusted_proxy_sends_the_certificate(folder: Path) -> None:
    more = 'source = "xfcc"\nsubject = "cn"\nallow = ["ord*"]\n'
    client = Client(built(PROXIED + APP + CERTIFICATE + more, str(folder / "gateway.toml")))
    peers = [{"REMOTE_ADDR": address} for address in ("127.0.0.1", "192.0.2.1")]
    answers = [client.get("/echo", headers=XFCC, environ_base=peer) for peer in peers]
    assert [answer.status_code for answer in answers] == [200, 401]


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        (APP + CERTIFICATE + 'source = "xfcc"\n', "routes[0].middleware[0].source", "trusted"),
        (APP + CERTIFICATE + 'source = "x"\n', "routes[0].middleware[0].source", "expected"),
        (APP + CERTIFICATE + 'subject = "x"\n', "routes[0].middleware[0].subject", "san_uri"),
        (APP + CERTIFICATE + 'ca = "no.pem"\n', "routes[0].middleware[0].ca", "cannot be read"),
        (APP + CERTIFICATE + 'revoked = ["x"]\n', "routes[0].middleware[0].revoked", "SHA-256"),
        (
            '[gateway]\ntls = { cert = "authority.pem", client_cert = "required" }\n' + APP,
            "gateway.tls.client_ca",
            "is required",
        ),
        (
            '[gateway]\ntls = { cert = "authority.pem", client_cert = "maybe" }\n' + APP,
            "gateway.tls.client_cert",
            "optional",
        ),
    ],
)
def test_an_error_names_its_key(folder: Path, text: str, key: str, problem: str) -> None:
    found = errors_of(text, str(folder / "gateway.toml"))
    assert [path for path, _ in found] == [key]
    assert problem in found[0][1]


def checked(folder: Path, text: str) -> list[str]:
    file = folder / "gateway.toml"
    file.write_text(MEMORY + text)
    parsed = read_file(str(file))
    check_file(parsed, str(file)).gateway.close()
    return [path for path, _ in parsed.warnings]


def test_check_warns_if_no_certificate_can_arrive(folder: Path) -> None:
    tls = '[gateway]\ntls = { cert = "authority.pem", client_ca = "authority.pem" }\n'
    assert checked(folder, APP + CERTIFICATE) == ["routes[0].middleware[0].source"]
    assert checked(folder, tls + APP + CERTIFICATE) == []


OF_TOKEN = """
use = "authenticator"
algorithms = ["HS256"]
secret = "0123456789abcdef0123456789abcdef"
certificate_bound = "optional"
"""
OPTIONAL = 'use = "client-certificate"\nrequired = false\n'
LIST, ALL, ANY = "[[routes.middleware]]\n", "all-of", "any-of"


def combined(use: str, *of: str) -> str:
    return f'{LIST}use = "{use}"\n' + "".join(f"[[routes.middleware.of]]\n{each}" for each in of)


@pytest.mark.parametrize(
    ("middlewares", "warned"),
    [
        (LIST + OF_TOKEN, "routes[0].middleware[0].certificate_bound"),
        (LIST + OF_TOKEN + LIST + OPTIONAL, "routes[0].middleware[0].certificate_bound"),
        (LIST + OPTIONAL + LIST + OF_TOKEN, None),
        (combined(ALL, OPTIONAL, OF_TOKEN), None),
        (combined(ALL, OF_TOKEN, OPTIONAL), "routes[0].middleware[0].of[0].certificate_bound"),
        (LIST + OPTIONAL + combined(ANY, OF_TOKEN, 'use = "api-key"\n'), None),
        ("[[middleware]]\n" + OPTIONAL + LIST + OF_TOKEN, None),
        ("[[middleware]]\n" + OF_TOKEN + LIST + OPTIONAL, "middleware[0].certificate_bound"),
        (LIST + OF_TOKEN.replace("optional", "off"), None),
    ],
)
def test_check_warns_of_bound_tokens_without_a_certificate(
    folder: Path, middlewares: str, warned: str | None
) -> None:
    tls = '[gateway]\ntls = { cert = "authority.pem", client_ca = "authority.pem" }\n'
    found = checked(folder, tls + APP + middlewares)
    assert [each for each in found if "certificate_bound" in each] == [warned] * bool(warned)


@pytest.mark.parametrize(("client_cert", "cert_reqs"), [("optional", 1), ("required", 2)])
def test_gunicorn_asks_for_certificates(
    client_cert: str, cert_reqs: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsgigate.servers.gunicorn.last_valid", None)
    tls = f'cert = "authority.pem", client_ca = "authority.pem", client_cert = "{client_cert}"'
    file = folder / "gateway.toml"
    file.write_text(
        f"{MEMORY}[gateway]\ntls = {{ {tls} }}\n[services.a]\ninstances = ['http://127.0.0.1:1']\n"
    )
    found = settings(str(file))
    assert found["ca_certs"] == str(folder / "authority.pem")
    assert found["cert_reqs"] == cert_reqs


def test_granian_gives_apps_no_certificate() -> None:
    tls = '[gateway]\ntls = { cert = "a.pem", client_ca = "b.pem" }\n'
    with pytest.raises(ValueError, match=r"gateway\.tls\.client_ca: granian"):
        check(parse(MEMORY + tls + APP, environ={}))
