"""A primary named by a sentinel is used only if it confirms its role.

What they do in a real failover is in tests/acceptance/test_redis_sentinel.py.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest

from wsgigate.store import StoreError


@pytest.fixture
def sentinel():
    """Start sentinels of which each names one server as the primary, whatever it is asked."""
    sockets, threads = [], []

    def serve(listener, answer):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            sockets.append(connection)
            while connection.recv(4096):
                connection.sendall(answer)

    def start(port):
        listener = socket.create_server(("127.0.0.1", 0))
        answer = b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(port)), port)
        threads.append(threading.Thread(target=serve, args=(listener, answer)))
        threads[-1].start()
        sockets.append(listener)
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for each in sockets:
        with suppress(OSError):  # the other side was faster
            each.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    for each in sockets:
        each.close()


PATIENT = "socket_timeout=10&socket_connect_timeout=10"


def test_a_replica_that_a_sentinel_names_as_primary_is_not_used(start, connect, sentinel):
    primary = start()
    replica = start("--replicaof", "127.0.0.1", str(primary.port), "--replica-read-only", "no")
    late, right = sentinel(replica.port), sentinel(primary.port)
    misled = connect(f"redis+sentinel://{late}/service?{PATIENT}")
    expected = f":{replica.port}, which a sentinel named, is not the primary"
    with pytest.raises(StoreError, match=expected):
        misled.swap("key", None, b"value", 60)
    misled.close()
    store = connect(f"redis+sentinel://{late},{right}/service?{PATIENT}")
    assert store.swap("key", None, b"value", 60)
    with primary.admin() as admin:
        assert admin.get(f"{store.prefix}key") == b"value"
    store.close()
