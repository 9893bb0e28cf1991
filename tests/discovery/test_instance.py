"""The ``Host`` of an instance, besides its address."""

from __future__ import annotations

import pytest

from wsgigate.discovery import Instance


@pytest.mark.parametrize(
    ("url", "host", "authority"),
    [
        ("http://10.0.0.5:8000", "", "10.0.0.5:8000"),
        ("http://10.0.0.5:8000", "Shop.Example", "shop.example"),
        ("http://10.0.0.5:8000", "shop.example.", "shop.example"),
        ("http://10.0.0.5:8000", "shop.example:8000", "shop.example:8000"),
        ("http://10.0.0.5:8000", "shop.example:80", "shop.example"),
        ("https://10.0.0.5", "shop.example:443", "shop.example"),
        ("https://10.0.0.5", "shop.example:80", "shop.example:80"),
        ("http://10.0.0.5", "[2001:DB8::1]:81", "[2001:db8::1]:81"),
        ("http+unix://%2Frun%2Fapp.sock", "shop.example", "shop.example"),
        ("http+unix://%2Frun%2Fapp.sock", "", "localhost"),
    ],
)
def test_an_instance_has_a_host_besides_its_address(url: str, host: str, authority: str) -> None:
    instance = Instance(url, host=host)
    assert instance.authority == authority
    assert (instance.url, instance.address, instance.origin) == (
        Instance(url).url,
        Instance(url).address,
        Instance(url).origin,
    )


@pytest.mark.parametrize(
    "host",
    [
        *("http://shop.example", "shop.example/x", "shop example", "shop.example:99999", ":80"),
        *("-shop", "user@shop.example", "a\r\nX: y", "[::1", "[zz]", "shöp.example", "x" * 300),
    ],
)
def test_an_invalid_host_is_rejected(host: str) -> None:
    with pytest.raises(ValueError, match="host must be a name such as"):
        Instance("http://10.0.0.5", host=host)


def test_instances_with_different_hosts_are_not_equal() -> None:
    assert Instance("http://a", host="x") != Instance("http://a", host="y")
