"""Patterns of host names."""

from __future__ import annotations

import pytest

from wsgigate.rules.routing import Hosts, host_pattern

HOSTS = Hosts(["api.Example.com", "*.shop.test", "[::1]", "10.0.0.1"])


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("api.example.com", True),
        ("example.com", False),
        ("xapi.example.com", False),
        ("a.shop.test", True),
        ("a.b.shop.test", True),
        ("shop.test", False),
        ("ashop.test", False),
        (".shop.test", True),  # no request can name it: a host starts with a letter
        ("[::1]", True),
        ("10.0.0.1", True),
        ("", False),
    ],
)
def test_a_host_is_one_of_them_or_below_one(host: str, known: bool) -> None:
    assert (host in HOSTS) is known


@pytest.mark.parametrize("pattern", ["", "*", "a.*.b", "**.a", "a b", "a:80", "http://a", "*."])
def test_a_malformed_host_raises(pattern: str) -> None:
    with pytest.raises(ValueError, match="a host is a name such as"):
        host_pattern(pattern)


def test_one_text_is_not_a_list_of_hosts() -> None:
    with pytest.raises(ValueError, match="a list of hosts"):
        Hosts("a.test")
