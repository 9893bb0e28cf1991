"""``X-Forwarded-For`` and ``Forwarded``: reading, writing and trusted proxies."""

from __future__ import annotations

import pytest

from wsgigate.http.forwarded import (
    CLIENT_FORGED,
    AddressList,
    client_of,
    forged_keys,
    format_forwarded,
    forwarded_chain,
    forwarded_for,
    parse_forwarded,
)

TRUSTED = AddressList(["10.0.0.0/8", "fd00::/8"]).__contains__


@pytest.mark.parametrize(
    ("value", "entries"),
    [
        ("", []),
        (" , ,", []),
        ("1.2.3.4", ["1.2.3.4"]),
        ("1.1.1.1,2.2.2.2", ["1.1.1.1", "2.2.2.2"]),  # D11: two fields, as gunicorn joins them
        (' a ,\t"b , c:1', ["a", '"b', "c:1"]),
    ],
)
def test_x_forwarded_for_is_a_list(value, entries):
    """Security D10, D11."""
    assert forwarded_for(value) == entries


@pytest.mark.parametrize("read", [forwarded_for, parse_forwarded])
def test_more_than_32_entries_are_an_error_at_once(read):
    """Security D10."""
    assert len(read(",".join(["for=1.2.3.4"] * 32))) == 32
    for many in (33, 500_000):
        with pytest.raises(ValueError, match="more than 32"):
            read(",".join(["for=1.2.3.4"] * many))


@pytest.mark.parametrize(
    ("value", "elements"),
    [
        ("", []),
        ("for=1.2.3.4", [{"for": "1.2.3.4"}]),
        (
            'For="[2001:db8::1]:4711";PROTO=https;by=_x',  # D15
            [{"for": "[2001:db8::1]:4711", "proto": "https", "by": "_x"}],
        ),
        ("for=a, for=b;proto=http", [{"for": "a"}, {"for": "b", "proto": "http"}]),
        ('for=a,for="b;c\\"d",;;', [{"for": "a"}, {"for": 'b;c"d'}]),  # D16
        ('for=a;host="x, for=b",for=c', [{"for": "a", "host": "x, for=b"}, {"for": "c"}]),
        ("for=1.2.3.4:55;by=[::1]", [{"for": "1.2.3.4:55", "by": "[::1]"}]),  # quotes forgotten
        (";for=a; ;proto=http;", [{"for": "a", "proto": "http"}]),
        # What is malformed ends the reading; what stands right of it is still read.
        ('for="open, for=1.2.3.4', [{"for": "1.2.3.4"}]),
        ('for="a" b, for=c', [{"for": "c"}]),
        ("for=a;for=b, for=c", [{"for": "c"}]),
        ("for=a, for = b", []),
        ("for=a, b", []),
        ("for", []),
        ("for=", []),
        ("for=\x00", []),
        ('for="\x00"', []),
        ("for=a, for=b\n", []),
    ],
)
def test_forwarded_is_read_from_the_right_until_it_is_malformed(value, elements):
    """RFC 7239 section 4; security D15, D16."""
    assert parse_forwarded(value) == elements


@pytest.mark.parametrize(
    "text", ['"' * 500_000, "a=b;" * 500_000, 'a="' + "\\" * 500_000, " ;" * 500_000]
)
def test_parsing_forwarded_takes_linear_time(text):
    """Security D16: with anything more than linear this would not end."""
    parse_forwarded(text + ", " * 30)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("192.0.2.1",), "for=192.0.2.1"),
        (
            ("2001:db8::1", "example.com", "https"),
            'for="[2001:db8::1]";host=example.com;proto=https',
        ),
        (("::ffff:192.0.2.1", "h:80"), 'for=192.0.2.1;host="h:80"'),
        (("fe80::1%eth0",), 'for="[fe80::1]"'),
        (("unix", "", "http"), "for=unknown;proto=http"),
        (("junk;by=x", 'a"b\\c'), 'for=unknown;host="a\\"b\\\\c"'),
    ],
)
def test_forwarded_is_written_so_that_it_reads_the_same(arguments, text):
    """RFC 7239 sections 4 and 6; security D18."""
    assert format_forwarded(*arguments) == text
    (element,) = parse_forwarded(text)
    assert element.get("host", "") == (arguments[1] if len(arguments) > 1 else "")


def test_forwarded_does_not_carry_a_line_break():
    """RFC 9110 section 5.5."""
    with pytest.raises(ValueError, match="field value"):
        format_forwarded("192.0.2.1", "a\r\nb")


@pytest.mark.parametrize(
    ("peer", "entries", "chain"),
    [
        ("9.9.9.9", "1.2.3.4", []),  # D08: the peer is nobody's proxy
        ("10.0.0.5", "", []),
        ("10.0.0.5", "6.6.6.6, 1.2.3.4", ["1.2.3.4"]),  # D09
        ("10.0.0.5", "6.6.6.6, 1.2.3.4, 10.0.0.4", ["1.2.3.4", "10.0.0.4"]),
        ("10.0.0.5", "10.0.0.3, 10.0.0.4", ["10.0.0.3", "10.0.0.4"]),
        ("10.0.0.5", 'junk, 1.2.3.4:55, [::1]:1, unknown, "', []),  # D10
        ("10.0.0.5", "junk, 1.2.3.4:55, 10.0.0.9, [fd00::1]:1", ["1.2.3.4", "10.0.0.9", "fd00::1"]),
        ("10.0.0.5", "1.2.3.4, unknown, 10.0.0.9", ["10.0.0.9"]),
        ("10.0.0.5", "1.2.3.4, ::ffff:10.0.0.1", ["1.2.3.4", "10.0.0.1"]),  # D12
        ("::ffff:10.0.0.5", "1.2.3.4", ["1.2.3.4"]),
        ("", "1.2.3.4", []),  # D14
    ],
)
def test_the_client_is_the_right_most_address_that_is_no_trusted_proxy(peer, entries, chain):
    """Security D08 to D12."""
    read = forwarded_for(entries)
    assert forwarded_chain(peer, read, TRUSTED) == chain
    assert client_of(peer, read, TRUSTED) == (chain[0] if chain else peer)


def test_every_x_forwarded_key_counts_as_forged():
    """Security D13: the family is one unit, its members not invented yet included."""
    environ = dict.fromkeys(
        ["HTTP_HOST", "HTTP_X_FORWARDED_ANYTHING", "PATH_INFO", *CLIENT_FORGED], ""
    )
    assert set(forged_keys(environ)) == {"HTTP_X_FORWARDED_ANYTHING", *CLIENT_FORGED}


@pytest.mark.parametrize(
    "name",
    [
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Forwarded-Ssl",
        "X-Forwarded-Scheme",
        "X-Forwarded-By",
        "X-Forwarded-Server",
        "X-Forwarded-User",
        "X-Original-Forwarded-For",
        "Front-End-Https",
        "X-Scheme",
        "X-Url-Scheme",
        "Cf-Connecting-Ipv6",
        "Fastly-Client-Ip",
        "Fly-Client-Ip",
        "X-Envoy-External-Address",
        "X-Original-Method",
        "X-Original-Uri",
        "X-Real-Ip",
        "Client-Ip",
        "True-Client-Ip",
        "Cf-Connecting-Ip",
        "X-Client-Ip",
        "X-Cluster-Client-Ip",
        "X-Original-Url",
        "X-Original-Host",
        "X-Rewrite-Url",
        "X-Http-Method-Override",
        "X-Http-Method",
        "X-Method-Override",
        "Proxy",
    ],
)
def test_the_fields_that_mislead_backends_are_listed(name):
    """Security D13, C08."""
    assert "HTTP_" + name.upper().replace("-", "_") in CLIENT_FORGED
