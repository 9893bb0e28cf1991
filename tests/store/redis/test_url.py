"""URLs of Redis servers, and that no password is shown."""

import subprocess
import sys

import pytest

from wsgigate.store import Store
from wsgigate.store.open import open_store
from wsgigate.store.redis import RedisStore
from wsgigate.store.redis_url import read_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", ("single", (("localhost", 6379),), "", False, 0)),
        ("redis://h", ("single", (("h", 6379),), "", False, 0)),
        ("redis://h:7000/3", ("single", (("h", 7000),), "", False, 3)),
        ("redis://h?db=4", ("single", (("h", 6379),), "", False, 4)),
        ("rediss://h:7000", ("single", (("h", 7000),), "", True, 0)),
        ("valkey://[::1]:7000/2", ("single", (("::1", 7000),), "", False, 2)),
        ("valkeys://h", ("single", (("h", 6379),), "", True, 0)),
        ("unix:///run/r%20s.sock?db=1", ("single", (("/run/r s.sock", 0),), "", False, 1)),
        ("redis+unix://u:p@/run/r.sock", ("single", (("/run/r.sock", 0),), "", False, 0)),
        (
            "redis+sentinel://a,b:7000/mymaster/2",
            ("sentinel", (("a", 26379), ("b", 7000)), "mymaster", False, 2),
        ),
        ("valkeys+sentinel://a/m", ("sentinel", (("a", 26379),), "m", True, 0)),
        ("redis+cluster://a:1,b:2", ("cluster", (("a", 1), ("b", 2)), "", False, 0)),
        ("rediss+cluster://a", ("cluster", (("a", 6379),), "", True, 0)),
    ],
)
def test_the_url_names_the_servers(url, expected):
    place = read_url(url, environ={})
    found = (place.kind, place.addresses, place.service, place.tls, place.settings["db"])
    assert found == expected


NAMED = {"WSGIGATE_STORE_USERNAME": "env-name", "WSGIGATE_STORE_PASSWORD": "env-pass"}


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("redis://h", {}, (None, None)),
        ("redis://:secret@h", {}, (None, "secret")),
        ("redis://name:secret@h", NAMED, ("name", "secret")),
        ("redis://n%40me:s%2Fe%3Ac%23ret%25@h", {}, ("n@me", "s/e:c#ret%")),
        ("redis://h?username=name&password=s%2Fcret", {}, ("name", "s/cret")),
        ("redis://h", NAMED, ("env-name", "env-pass")),
        ("redis://name@h", NAMED, ("name", "env-pass")),
    ],
)
def test_name_and_password_are_in_the_url_or_in_the_environment(url, environ, expected):
    settings = read_url(url, environ=environ).settings
    assert (settings["username"], settings["password"]) == expected


def test_sentinels_have_a_name_and_a_password_of_their_own():
    place = read_url(
        "redis+sentinel://n:p@a/m?sentinel_username=sn&sentinel_password=sp&socket_timeout=2",
        environ=NAMED,
    )
    assert place.sentinel_settings["username"] == "sn"
    assert place.sentinel_settings["password"] == "sp"
    assert place.sentinel_settings["socket_timeout"] == 2
    assert (place.settings["username"], place.settings["password"]) == ("n", "p")
    assert read_url("redis+sentinel://a/m", environ=NAMED).sentinel_settings["password"] is None


def test_the_default_timeouts_are_short():
    usual = read_url("redis://h", environ={})
    assert usual.settings["socket_timeout"] == usual.settings["socket_connect_timeout"] == 0.05
    assert (usual.wait, usual.most) == (0.05, 32)
    query = "socket_timeout=1&socket_connect_timeout=2.5&timeout=3&max_connections=4"
    other = read_url(f"redis://h?{query}", environ={})
    assert (other.settings["socket_timeout"], other.settings["socket_connect_timeout"]) == (1, 2.5)
    assert (other.wait, other.most) == (3, 4)


def test_certificates_are_verified_by_default():
    assert read_url("rediss://h", environ={}).settings["ssl_check_hostname"] is True
    off = read_url("rediss://h?ssl_cert_reqs=none", environ={}).settings
    assert off["ssl_check_hostname"] is False
    named = read_url("rediss://h?ssl_check_hostname=false&ssl_ca_certs=/ca.pem", environ={})
    assert named.settings["ssl_check_hostname"] is False
    assert named.settings["ssl_ca_certs"] == "/ca.pem"


@pytest.mark.parametrize(
    ("url", "owner", "prefix"),
    [
        ("redis://h", "", "wsgigate:"),
        ("redis://h", "shop", "wsgigate:shop:"),
        ("redis://h?prefix=mine/", "shop", "mine/"),
    ],
)
def test_the_prefix_of_the_keys_names_the_owner(url, owner, prefix):
    assert read_url(url, owner=owner, environ={}).prefix == prefix


def test_similar_owners_have_different_prefixes():
    found = {read_url("redis://h", owner=f"my{c}shop", environ={}).prefix for c in " -/:*"}
    assert len(found) == 5
    assert all(prefix.startswith("wsgigate:my-shop") for prefix in found)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://h/x", "the database in the URL of a Redis must be a number"),
        ("redis://h:0", "a host in the URL of a Redis must be"),
        ("redis://h:99999", "a host in the URL of a Redis must be"),
        ("redis://h:x", "a host in the URL of a Redis must be"),
        ("redis://a,b", "several hosts need"),
        ("redis://h?colour=red", "no option 'colour'"),
        ("redis://h?prefiks=a", "no option 'prefiks'; did you mean 'prefix'"),
        ("redis://h?retry_on_timeout=true", "no option 'retry_on_timeout'"),
        ("redis://h?db=1&db=2", "option 'db' twice"),
        ("redis://h?socket_timeout=0", "option 'socket_timeout' of a Redis must be seconds"),
        ("redis://h?socket_timeout=nan", "option 'socket_timeout' of a Redis must be seconds"),
        (
            "redis://h?max_connections=0",
            "option 'max_connections' of a Redis must be a number from",
        ),
        ("redis://h?socket_keepalive=maybe", "true or false"),
        ("redis://h?prefix=", "option 'prefix' of a Redis must be 1 to 64"),
        ("redis://h?ssl_ca_certs=x", "'ssl_ca_certs' needs TLS: rediss://"),
        ("rediss://h?ssl_cert_reqs=maybe", "required, optional or none"),
        ("redis://h?sentinel_password=x", "needs redis.sentinel"),
        ("redis+sentinel://h", "the URL of sentinels must be"),
        ("redis+sentinel://h/m/x", "the database in the URL of a Redis must be a number"),
        ("redis+cluster://h/1", "has the database 0 only"),
        ("unix://relative/path", "the URL of a Unix socket must be"),
        ("unix://", "the URL of a Unix socket must be"),
        ("redis://:pass/word@h", "percent-encode special characters of the password"),
        ("redis://h#x", 'a Redis must be "redis://HOST'),
    ],
)
def test_an_invalid_url_is_rejected(url, words):
    with pytest.raises(ValueError, match=words):
        RedisStore(url)


SECRET = "hunter2-is-secret"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@h:x",
        f"redis://:{SECRET}/1@h",
        f"redis://u:{SECRET}@h/x",
        f"redis://u:{SECRET}@h?colour=red",
        f"redis://h/x?password={SECRET}",
        f"redis://:{SECRET}#@h",
        f"redis+cluster://:{SECRET}@h/1",
        f"rediss+nothing://:{SECRET}@h",
        f"nothing://:{SECRET}@h",
        f"redis:://:{SECRET}@h",
    ],
)
def test_no_error_shows_the_password(url):
    with pytest.raises(ValueError, match=r"Redis|store|cluster") as caught:
        open_store(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None or SECRET not in str(caught.value.__cause__)


def test_a_store_does_not_show_its_password():
    store = RedisStore(f"redis://name:{SECRET}@h:7000/2?password={SECRET}")
    assert repr(store) == "RedisStore('redis://h:7000/2', prefix='wsgigate:')"


@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "valkeys", "redis+cluster"])
def test_a_store_is_chosen_by_its_url(scheme):
    store = open_store(f"{scheme}://h", owner="shop")
    assert isinstance(store, RedisStore)
    assert isinstance(store, Store)
    assert store.prefix == "wsgigate:shop:"
    store.close()


@pytest.mark.parametrize("url", ["redis:", "redis:h", "http://h", "unix:/path", "lmdb", ""])
def test_a_url_of_another_scheme_is_rejected(url):
    with pytest.raises(ValueError, match='a store is "memory:"'):
        open_store(url)


@pytest.mark.parametrize("package", ["redis", "hiredis"])
def test_without_redis_py_or_hiredis_the_error_names_the_extra(package):
    code = """
import sys
from importlib.abc import MetaPathFinder
class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=sys.argv[1])
sys.meta_path.insert(0, Missing())
from wsgigate import open_store
open_store("memory:")
try:
    open_store("redis://:secret@h")
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, package], capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        'a store at redis:// needs redis-py and hiredis: pip install "wsgigate[redis]"\n'
    )
