"""A full disk is an error with a message, handled as configured, and kills no process."""

import pytest

DISK = """
import ctypes, os, resource, sys
folder, room = sys.argv[1], int(sys.argv[2])
left = room // 2
libc = ctypes.CDLL(None, use_errno=True)
NEWNS, PRIVATE = 0x20000, 0x44000
options = f"size={room},mode=0700".encode()
filler = folder + "/filler"
if (
    os.geteuid() == 0
    and libc.unshare(NEWNS) == 0
    and libc.mount(b"none", b"/", None, PRIVATE, None) == 0
    and libc.mount(b"none", folder.encode(), b"tmpfs", 0, options) == 0
):
    with open(filler, "wb") as file:
        file.write(bytes(room - left))
    more_room = lambda: os.remove(filler)
else:  # no disk of our own can be had: a limit on files does the same with another errno
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
    more_room = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
from wsgigate.store import StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.testing import FakeClock
clock = FakeClock()
store = LmdbStore(folder, clock=clock)
"""

FILL = """
stored = 0
try:
    store.check()
    while stored < 10_000:
        store.swap(f"key/{stored}", None, bytes(4000), 60)
        stored += 1
except StoreError as error:
    print("refused", error)
"""

CHANGE = """
assert stored > 100
for number in range(3 * stored):  # there is room for what is there already
    store.update(f"key/{number % stored}", lambda old, now: (os.urandom(4000), 60, None))
assert store.get("key/0")[0] != bytes(4000)
more_room()
clock.advance(0.25)
store.swap("new", None, bytes(60_000), 60)
assert store.get("new")[0] == bytes(60_000)
assert store.usage()["used"] > 60_000 + 4000 * stored
print("recovered")
"""


def test_a_full_disk_rejects_new_values_and_keeps_the_others(tmp_path, output):
    refused, recovered = output(DISK + FILL + CHANGE, tmp_path, 4 * 1024 * 1024).splitlines()
    assert refused.startswith(f"refused {tmp_path}/data.mdb cannot be made larger: ")
    assert refused.endswith(("No space left on device", "File too large"))
    assert recovered == "recovered"


@pytest.mark.parametrize("room", [8192, 65536, 163840, 1024 * 1024])
def test_a_full_disk_at_the_start_is_an_error_and_no_crash(tmp_path, output, room):
    then = """
assert not stored
more_room()
"""
    refused = output(DISK + FILL + then, tmp_path, room)
    assert refused.startswith(f"refused {tmp_path}/data.mdb cannot be used: ")


# the second is room for the lock file and one page of the other
@pytest.mark.parametrize("left", [1024 * 1024, 65536 + 4096])
def test_a_store_is_made_once_the_disk_has_space(tmp_path, output, left):
    then = """
more_room()
store.swap("key", None, b"value", 60)
assert store.get("key")[0] == b"value"
"""
    disk = DISK.replace("left = room // 2", f"left = {left}")
    assert "refused" in output(disk + FILL + then, tmp_path, 2 * 1024 * 1024)


LIMITED = """
import logging
from wsgigate import Limiter
logging.disable()
def app(environ, start_response):
    start_response("200 OK", [])
    return []
def statuses(limiter, callers):
    found = set()
    for caller in callers:
        environ = {"caller": f"{caller}/{'x' * 100}", "REQUEST_METHOD": "GET"}
        limiter(environ, lambda status, *rest: found.add(status[:3]))
    return sorted(found)
key = lambda environ: environ["caller"]
quota = "2 per hour"
first = Limiter(app, quota, store=store, key=key)
limiter = Limiter(app, quota, store=store, key=key, name="other", on_store_error=sys.argv[3])
for caller in range(100_000):
    statuses(first, [caller])
    if first.store_errors:
        break
print("new", statuses(limiter, range(5)), "errors", limiter.store_errors)
known = Limiter(app, quota, store=store, key=key)
print("known", statuses(known, range(5)), statuses(known, range(5)), known.store_errors)
more_room()
clock.advance(0.25)
print("after", statuses(limiter, range(5)), limiter.store_errors)
"""


@pytest.mark.parametrize(("choice", "status"), [("allow", "200"), ("refuse", "503")])
def test_a_limiter_follows_on_store_error_while_the_disk_is_full(tmp_path, output, choice, status):
    new, known, after = output(DISK + LIMITED, tmp_path, 4 * 1024 * 1024, choice).splitlines()
    assert new == f"new ['{status}'] errors 5"
    assert known == "known ['200'] ['429'] 0"
    assert after == "after ['200'] 5"
