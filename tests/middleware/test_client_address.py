"""The client address: the peer, or the address that a trusted proxy vouches for."""

from __future__ import annotations

import json
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import flask
import pytest
from django.http import JsonResponse
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

from tests.support.objects import texts_kept
from wsgigate.http.forwarded import ADDRESS_FIELDS, CLIENT_FORGED
from wsgigate.http.problem import Problem
from wsgigate.http.wsgi import CLIENT, PEER_TRUSTED, REASON
from wsgigate.middleware.client_address import ClientAddress

PROXY = "10.0.0.5"


def see(peer=PROXY, fields=None, extra=None, **options):
    """Return the environ that the app sees, and the status of the answer."""
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    environ = {"REMOTE_ADDR": peer, **(extra or {})}
    for name, value in (fields or {}).items():
        environ["HTTP_" + name.upper().replace("-", "_")] = value
    setup_testing_defaults(environ)
    status = []
    options.setdefault("trusted_proxies", ["10.0.0.0/8"])
    stack = ClientAddress(app, **options)
    b"".join(stack(environ, lambda line, headers, exc_info=None: status.append(line)))
    return (seen or environ), int(status[0][:3])


def forwarded_fields(environ):
    return {
        key[5:] for key in environ if key in CLIENT_FORGED or key.startswith("HTTP_X_FORWARDED")
    }


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),  # K03
        ("2001:DB8:0:0::7", "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("", "unix"),  # D14
        ("localhost", "localhost"),
        ("10.0.0.5", "10.0.0.5"),
    ],
)
def test_the_client_is_the_peer_by_default(peer, client):
    environ, _ = see(peer)
    assert environ[CLIENT] == client


def test_no_peer_is_trusted_by_default():
    environ, _ = see("127.0.0.1", {"X-Forwarded-For": "1.2.3.4"}, trusted_proxies=())
    assert environ[CLIENT] == "127.0.0.1"
    assert PEER_TRUSTED not in environ


@pytest.mark.parametrize("peer", ["192.0.2.7", "", "::ffff:192.0.2.7", "junk"])
def test_forwarding_fields_of_an_untrusted_peer_are_removed(peer):
    """Security D08, D13: the family is one unit, whatever its members are called."""
    fields = dict.fromkeys((key[5:] for key in CLIENT_FORGED), "1.2.3.4")
    fields["X-Forwarded-Not-Invented-Yet"] = "x"
    fields["User-Agent"] = "kept"
    environ, status = see(peer, fields)
    assert status == 200
    assert forwarded_fields(environ) == set()
    assert environ["HTTP_USER_AGENT"] == "kept"
    assert environ[CLIENT] != "1.2.3.4"
    assert environ["wsgi.url_scheme"] == "http"
    assert PEER_TRUSTED not in environ


def test_a_field_is_removed_whatever_came_before_on_other_requests():
    """What is remembered as harmless never hides what is not."""
    seen = []
    stack = ClientAddress(lambda environ, start_response: seen.append(dict(environ)) or [])
    for fields in (
        {},
        {"HTTP_X_REAL_IP": "6"},
        {"HTTP_A": "1"},
        {"HTTP_A": "1", "HTTP_X_REAL_IP": "6"},
    ):
        stack({"REMOTE_ADDR": "192.0.2.7", **fields}, None)
    assert not any("HTTP_X_REAL_IP" in environ for environ in seen)
    assert "HTTP_A" in seen[-1]


def test_the_cache_of_accepted_tokens_is_bounded():
    seen = []
    stack = ClientAddress(lambda environ, start_response: seen.append(environ) or [])
    for number in range(ClientAddress.KNOWN * 2):
        stack({"REMOTE_ADDR": "192.0.2.7", f"HTTP_{number}": "", "HTTP_X_FORWARDED_FOR": "6"}, None)
    stack({"REMOTE_ADDR": "192.0.2.7", "HTTP_" + "A" * 4000: ""}, None)
    names = [text for text in texts_kept(stack, but=[seen]) if text.startswith("HTTP_")]
    assert 0 < len(names) <= ClientAddress.KNOWN
    assert max(map(len, names)) <= 40
    assert not any("HTTP_X_FORWARDED_FOR" in environ for environ in seen)


def test_no_client_can_make_itself_trusted():
    environ, _ = see("192.0.2.7", {"Wsgigate.Peer-Trusted": "1"}, {PEER_TRUSTED: True})
    assert PEER_TRUSTED not in environ


@pytest.mark.parametrize(
    ("value", "client", "chain"),
    [
        ("6.6.6.6, 1.2.3.4", "1.2.3.4", "1.2.3.4"),  # D09
        ("6.6.6.6,1.2.3.4", "1.2.3.4", "1.2.3.4"),  # D11: two fields
        ("6.6.6.6, 1.2.3.4:55, [::ffff:10.0.0.1]:1", "1.2.3.4", "1.2.3.4, 10.0.0.1"),  # D10, D12
        ("2001:DB8::1", "2001:db8::1", "2001:db8::1"),
        ("10.1.1.1, 10.2.2.2", "10.1.1.1", "10.1.1.1, 10.2.2.2"),
        ('junk, 1.2.3.4:55, [::1]:1, unknown, "', PROXY, None),  # D10
        ("1.2.3.4, unknown, 10.0.0.9", "10.0.0.9", "10.0.0.9"),
        ("", PROXY, None),
        (",,,", PROXY, None),
        (", ".join(["6.6.6.6"] * 31 + ["1.2.3.4"]), "1.2.3.4", "1.2.3.4"),
    ],
)
def test_a_trusted_proxy_vouches_for_the_right_most_stranger(value, client, chain):
    """Security D09 to D12; what the client wrote itself goes no further."""
    environ, status = see(fields={"X-Forwarded-For": value})
    assert status == 200
    assert environ[CLIENT] == client
    assert environ[PEER_TRUSTED] is True
    assert environ.get("HTTP_X_FORWARDED_FOR") == chain


@pytest.mark.parametrize(
    ("source", "field"), [("x-forwarded-for", "X-Forwarded-For"), ("forwarded", "Forwarded")]
)
def test_more_than_32_entries_are_refused(source, field):
    """Security D10."""
    environ, status = see(fields={field: "for=1.2.3.4," * 500}, source=source)
    assert status == 400
    assert environ[REASON].startswith("the trusted proxy 10.0.0.5 sent too much")
    assert environ[CLIENT] == PROXY
    _, status = see("192.0.2.7", {field: "1.2.3.4," * 500}, source=source)
    assert status == 200, "an untrusted peer's are not even read"


@pytest.mark.parametrize(
    ("value", "client", "rest"),
    [
        ("for=6.6.6.6, for=1.2.3.4", "1.2.3.4", "for=1.2.3.4"),
        (  # D15
            'for=6.6.6.6;host=evil,for="[2001:db8::1]:4711";proto=https;by=_x;host="a.example:444"',
            "2001:db8::1",
            'for="[2001:db8::1]";host="a.example:444";proto=https',
        ),
        ('for="[2001:db8::1]", for=10.0.0.9', "2001:db8::1", 'for="[2001:db8::1]", for=10.0.0.9'),
        ('for=a,for="b;c\\"d",;;', PROXY, None),  # D16
        ('for="open, for=1.2.3.4', "1.2.3.4", "for=1.2.3.4"),
        ("for=unknown;proto=https", PROXY, None),
        ("proto=https", PROXY, None),
        ("", PROXY, None),
    ],
)
def test_forwarded_is_read_where_it_is_the_source(value, client, rest):
    """Security D15, D16."""
    environ, _ = see(fields={"Forwarded": value}, source="forwarded")
    assert environ[CLIENT] == client
    assert environ.get("HTTP_FORWARDED") == rest
    assert environ["wsgi.url_scheme"] == ("https" if "https" in value else "http")


def test_forwarded_gives_host_and_client_of_the_same_hop():
    value = (
        "for=6.6.6.6;host=evil, for=1.2.3.4;host=shop.example;proto=https, for=10.0.0.9;proto=http"
    )
    environ, _ = see(fields={"Forwarded": value}, source="forwarded")
    assert environ["HTTP_X_FORWARDED_HOST"] == "shop.example"
    assert environ["wsgi.url_scheme"] == environ["HTTP_X_FORWARDED_PROTO"] == "https"
    assert environ["HTTP_X_FORWARDED_FOR"] == "1.2.3.4, 10.0.0.9"


@pytest.mark.parametrize(
    ("source", "client", "host"),
    [("x-forwarded-for", "1.2.3.4", "x.example"), ("forwarded", "5.6.7.8", "f.example")],
)
def test_only_one_source_counts_when_they_disagree(source, client, host):
    """Security D17."""
    fields = {
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-Host": "x.example",
        "X-Forwarded-Port": "99",
        "Forwarded": "for=5.6.7.8;host=f.example;proto=https",
    }
    environ, _ = see(fields=fields, source=source)
    assert environ[CLIENT] == environ["HTTP_X_FORWARDED_FOR"] == client
    assert environ["HTTP_X_FORWARDED_HOST"] == host
    assert environ["HTTP_FORWARDED"].startswith(f"for={client};host={host}")
    assert ("HTTP_X_FORWARDED_PORT" in environ) is (source == "x-forwarded-for")


@pytest.mark.parametrize(
    ("value", "scheme"),
    [
        ("https", "https"),
        ("http", "http"),
        ("HTTPS", None),
        ("https,http", None),
        ("https ", None),
        ("javascript", None),
        ("", None),
    ],
)
def test_the_scheme_is_exactly_http_or_https(value, scheme):
    environ, _ = see(fields={"X-Forwarded-Proto": value}, extra={"wsgi.url_scheme": "http"})
    assert environ["wsgi.url_scheme"] == (scheme or "http")
    assert environ.get("HTTP_X_FORWARDED_PROTO") == scheme


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("Host", "shop.example", True),
        ("Host", "shop.example:8443", True),
        ("Host", "[2001:db8::1]:80", True),
        ("Host", "a.example, b.example", False),
        ("Host", "a.example/x", False),
        ("Host", "user@a.example", False),
        ("Host", "a.example:99999", False),
        ("Host", "", False),
        ("Port", "443", True),
        ("Port", "0", False),
        ("Port", "65536", False),
        ("Port", "443,80", False),
        ("Port", "-1", False),
        ("Prefix", "/shop", True),
        ("Prefix", "/shop/eu/", True),
        ("Prefix", "/", False),
        ("Prefix", "shop", False),
        ("Prefix", "//evil", False),
        ("Prefix", "/a/../b", False),
        ("Prefix", "/a\r\nb", False),
        ("Prefix", "/%2e", False),
    ],
)
def test_host_port_and_prefix_are_kept_when_well_formed(field, value, kept):
    """Security D13, CVE-2026-35051."""
    environ, _ = see(fields={f"X-Forwarded-{field}": value})
    assert environ.get(f"HTTP_X_FORWARDED_{field.upper()}") == (value if kept else None)
    assert environ["HTTP_HOST"] == "127.0.0.1"


def test_a_trusted_proxy_does_not_vouch_for_the_rest_of_the_family():
    """Security D13, C08: what a proxy passes on unread, it has not checked either."""
    fields = dict.fromkeys((key[5:] for key in CLIENT_FORGED), "/x")
    fields["X-Forwarded-Not-Invented-Yet"] = "x"
    environ, _ = see(fields={**fields, "X-Forwarded-For": "1.2.3.4"})
    assert forwarded_fields(environ) == {"FORWARDED", "X_FORWARDED_FOR", "X_FORWARDED_PREFIX"}


def test_peers_of_a_unix_socket_are_trusted_if_configured():
    """Security D14."""
    environ, _ = see("", {"X-Forwarded-For": "1.2.3.4"}, trusted_proxies=["unix"])
    assert environ[CLIENT] == "1.2.3.4"
    environ, _ = see("", {"X-Forwarded-For": "1.2.3.4"}, trusted_proxies=["0.0.0.0/0", "::/0"])
    assert environ[CLIENT] == "unix"


def test_the_outermost_one_decides():
    environ, _ = see("192.0.2.7", {"X-Forwarded-For": "1.2.3.4"}, {CLIENT: "5.6.7.8"})
    assert environ[CLIENT] == "5.6.7.8"
    assert environ["HTTP_X_FORWARDED_FOR"] == "1.2.3.4"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"trusted_proxies": ["10.0.0.0/8", "proxy"]}, "trusted_proxies: 'proxy' is neither"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, "trusted_proxies: '10.0.0.1/8' has host bits set"),
        ({"trusted_proxies": "10.0.0.1"}, "trusted_proxies: expected a list"),
        ({"source": "x-real"}, 'source is one of "x-forwarded-for", "forwarded", "x-real-ip"'),
    ],
)
def test_invalid_settings_raise_in_the_constructor(options, text):
    with pytest.raises(ValueError, match=text):
        ClientAddress(None, **options)


def test_the_refusal_can_be_replaced():
    problems = []

    def refuse(problem):
        problems.append(problem)
        return Problem(418)

    _, status = see(fields={"X-Forwarded-For": "," * 99}, refuse=refuse)
    assert status == 418
    assert [problem.status for problem in problems] == [400]


def test_the_stack_is_valid_wsgi():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    stack = validator(ClientAddress(validator(app), trusted_proxies=["127.0.0.1"]))
    assert Client(stack).get("/", headers={"X-Forwarded-For": "1"}, buffered=True).data == b"ok"


def told(client, peer, **fields):
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    return client.get("/", headers=headers, environ_base={"REMOTE_ADDR": peer}).json


def test_a_flask_app_behind_it_can_take_the_first_entry_at_its_word():
    """Security S05: ProxyFix inside reads what was checked."""
    app = flask.Flask(__name__)

    @app.get("/")
    def index():
        first = flask.request.headers.get("X-Forwarded-For", "").partition(",")[0]
        return {
            "first": first,
            "scheme": flask.request.scheme,
            "address": flask.request.remote_addr,
        }

    app.wsgi_app = ClientAddress(ProxyFix(app.wsgi_app), trusted_proxies=[PROXY])
    fields = {"X_Forwarded_For": "6.6.6.6, 1.2.3.4", "X_Forwarded_Proto": "https"}
    expected = {"first": "1.2.3.4", "scheme": "https", "address": "1.2.3.4"}
    assert told(app.test_client(), PROXY, **fields) == expected
    expected = {"first": "", "scheme": "http", "address": "192.0.2.7"}
    assert told(app.test_client(), "192.0.2.7", **fields) == expected


def whoami(request):
    return JsonResponse({"client": request.environ[CLIENT], "secure": request.is_secure()})


def test_a_django_app_behind_it_knows_client_and_scheme(django_app):
    client = Client(ClientAddress(django_app({"": whoami}), trusted_proxies=[PROXY]))
    fields = {"X_Forwarded_For": "1.2.3.4", "X_Forwarded_Proto": "https"}
    assert told(client, PROXY, **fields) == {"client": "1.2.3.4", "secure": True}
    assert told(client, "192.0.2.7", **fields) == {"client": "192.0.2.7", "secure": False}


def test_too_many_entries_get_a_problem_document():
    stack = ClientAddress(None, trusted_proxies=[PROXY])
    response = Client(stack).get(
        "/", headers={"X-Forwarded-For": "1," * 40}, environ_base={"REMOTE_ADDR": PROXY}
    )
    assert response.status_code == 400
    assert response.mimetype == "application/problem+json"
    assert json.loads(response.data)["detail"] == "X-Forwarded-For has more than 32 entries."


ONE_ADDRESS = [*ADDRESS_FIELDS, "header:X-Edge-Client", "X-Real-IP"]


def field_of(source):
    return source.removeprefix("header:")


@pytest.mark.parametrize("source", ONE_ADDRESS)
def test_a_field_with_the_address_alone_is_read_from_a_trusted_proxy(source):
    fields = {
        field_of(source): "203.0.113.9",
        "X-Forwarded-For": "6.6.6.6",
        "Forwarded": "for=6.6.6.6",
        "X-Forwarded-Proto": "https",
        **({} if source == "x-client-ip" else {"X-Client-IP": "6.6.6.6"}),
    }
    environ, status = see(fields=fields, source=source)
    assert (status, environ[CLIENT]) == (200, "203.0.113.9")
    assert environ["HTTP_X_FORWARDED_FOR"] == "203.0.113.9"
    assert environ["HTTP_" + field_of(source).upper().replace("-", "_")] == "203.0.113.9"
    assert environ["wsgi.url_scheme"] == "https"
    if source != "x-client-ip":
        assert "HTTP_X_CLIENT_IP" not in environ


@pytest.mark.parametrize("source", ONE_ADDRESS)
@pytest.mark.parametrize("peer", ["192.0.2.7", "", "junk"])
def test_an_address_field_of_an_untrusted_peer_is_removed(source, peer):
    environ, _ = see(peer, {field_of(source): "203.0.113.9"}, source=source)
    assert environ[CLIENT] == (peer or "unix")
    assert "HTTP_" + field_of(source).upper().replace("-", "_") not in environ


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("203.0.113.9", "203.0.113.9"),
        (" 203.0.113.9 ", "203.0.113.9"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("2001:DB8::9", "2001:db8::9"),
        ("[2001:db8::9]:4711", "2001:db8::9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("10.0.0.9", "10.0.0.9"),
        ("203.0.113.9, 6.6.6.6", PROXY),  # two fields: the client sent one of them
        ("203.0.113.9,6.6.6.6", PROXY),
        ("", PROXY),
        ("unknown", PROXY),
        ("unix", PROXY),
        ("203.0.113.9%eth0", PROXY),
    ],
)
def test_only_a_single_valid_address_is_accepted(value, client):
    environ, status = see(fields={"X-Real-IP": value}, source="x-real-ip")
    assert (status, environ[CLIENT]) == (200, client)
    if client == PROXY:
        assert "HTTP_X_REAL_IP" not in environ
        assert "HTTP_X_FORWARDED_FOR" not in environ


def test_the_address_field_of_another_product_is_not_read():
    fields = {"CF-Connecting-IP": "6.6.6.6", "X-Forwarded-For": "6.6.6.6"}
    environ, _ = see(fields=fields, source="x-real-ip")
    assert environ[CLIENT] == PROXY


@pytest.mark.parametrize("name", ["unix", "unix:"])
@pytest.mark.parametrize("peer", ["", "localhost", "<local>", "unix:"])
def test_the_peers_of_a_unix_socket_can_be_trusted(name, peer):
    fields = {"X-Forwarded-For": "203.0.113.9"}
    assert see(peer, fields, trusted_proxies=[name])[0][CLIENT] == "203.0.113.9"
    assert see(peer, fields, trusted_proxies=["127.0.0.1"])[0][CLIENT] == peer or "unix"
    assert see("127.0.0.1", fields, trusted_proxies=[name])[0][CLIENT] == "127.0.0.1"


@pytest.mark.parametrize(
    "source",
    [
        "x-forwarded-from",
        "",
        "X Real IP",
        "header:",
        "header:a b",
        "header:Forwarded",
        None,
        5,
    ],
)
def test_an_unknown_source_raises_an_error_that_lists_the_known_ones(source):
    with pytest.raises(ValueError, match=r'^source is one of "x-forwarded-for", .*"x-real-ip"'):
        ClientAddress(None, source=source)
