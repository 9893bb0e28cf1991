"""Run the shop on this machine: three services behind the gateway. Ctrl-C stops it."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from errno import EADDRNOTAVAIL
from http.client import HTTPConnection, HTTPException
from threading import Event

import jwt
from process import Failed, Process, say
from visitors import Visitors

SERVICES = {"user-service": "users", "product-service": "products", "order-service": "orders"}
START_SECONDS = 30.0
STOP_SECONDS = 10.0

HINTS = """
The shop is open at {url}. Its dashboard is in the browser at

    {url}/    sign in with this token: {admin_token}

Paste these into another terminal; Ctrl-C here stops everything.

TOKEN={token}
curl {url}/health
curl {url}/info
curl {url}/services
curl {url}/discover/user-service
curl {url}/api/products
curl '{url}/api/products/search?q=coffee'
curl {url}/auth/register --json '{{"name": "Ada", "email": "ada@example.com", "password": "correct horse"}}'
curl {url}/auth/login --json '{{"email": "ada@example.com", "password": "correct horse"}}'
curl {url}/api/users/profile -H "Authorization: Bearer $TOKEN"
curl -i {url}/api/orders -H "Authorization: Bearer $TOKEN" --json '{{"items": [{{"productId": 7, "quantity": 2}}]}}'
curl {url}/api/orders -H "Authorization: Bearer $TOKEN"

100 requests in 15 minutes are allowed, the next one is a 429. To see it:
for i in $(seq 101); do curl -s -o /dev/null -w '%{{http_code}}\\n' {url}/info; done | sort | uniq -c
"""  # noqa: E501


def check_ports(ports: dict[str, int]) -> None:
    for name, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise Failed(
                    f"port {port}, for the {name}, cannot be used ({error.strerror}): stop what"
                    " listens there, or use other ports with --port-base, such as 4000"
                ) from None


def environment(ports: dict[str, int], store: str) -> dict[str, str]:
    """Return the environment for all processes: addresses, and random secrets if unset."""
    environ = dict(os.environ)
    for name in ("JWT_SECRET", "ADMIN_TOKEN"):
        environ[name] = environ.get(name) or secrets.token_urlsafe(32)
    if len(environ["JWT_SECRET"].encode()) < 32:
        raise Failed("JWT_SECRET must have at least 32 bytes; unset, the demo makes one up")
    for name in SERVICES:
        variable = name.replace("-", "_").upper() + "_URL"
        environ[variable] = f"http://127.0.0.1:{ports[name]}"
    environ["GATEWAY_PORT"] = str(ports["gateway"])
    environ.setdefault("LOG_FORMAT", "text")  # people read this
    environ["STORE_URL"] = f"lmdb:{store}"  # a new store, with no quota consumed
    return environ


def start(name: str, port: int, environ: dict[str, str]) -> Process:
    if name == "gateway":
        return Process(name, ["wsgigate", "run", "gateway.toml", "--workers", "2"], environ)
    command = ["gunicorn", f"{SERVICES[name]}:app", "--bind", f"127.0.0.1:{port}"]
    command += ["--worker-class", "gthread", "--workers", "1", "--threads", "8"]
    command += ["--log-level", "warning", "--no-control-socket"]
    command += ["--keep-alive", "75"]  # the gateway keeps its connections, not one per request
    return Process(name, command, environ)


def healthy(port: int) -> bool:
    """Probe from a separate loopback address, if available, to leave the user's quota whole."""
    for source in (("127.0.0.9", 0), None):
        connection = HTTPConnection("127.0.0.1", port, timeout=2, source_address=source)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except HTTPException:
            return False
        except OSError as error:
            if error.errno != EADDRNOTAVAIL:
                return False
        finally:
            connection.close()
    return False


def demo_token(secret: str) -> str:
    """Return a token for the user that the user service creates at its start."""
    now = int(time.time())
    claims = {"sub": "1", "name": "Demo User", "role": "customer", "iat": now, "exp": now + 3600}
    return jwt.encode(claims, secret, "HS256")


def wait_until_healthy(processes: list[Process], ports: dict[str, int], stop: Event) -> None:
    deadline = time.monotonic() + START_SECONDS
    for process in processes:
        while not stop.is_set() and not healthy(ports[process.name]):
            process.check()
            if time.monotonic() > deadline:
                raise Failed(f"{process.name} does not answer /health after {START_SECONDS:.0f} s")
            stop.wait(0.1)


def run(ports: dict[str, int], stop: Event, *, load: bool = True) -> None:
    """Run the shop until *stop* is set or one of its processes dies.

    :param load: Whether it has visitors.
    """
    check_ports(ports)
    store = tempfile.mkdtemp(prefix="wsgigate-demo-")
    processes: list[Process] = []
    try:
        environ = environment(ports, store)
        for name in (*SERVICES, "gateway"):
            processes.append(start(name, ports[name], environ))
        wait_until_healthy(processes, ports, stop)
        if not stop.is_set():
            url = f"http://127.0.0.1:{ports['gateway']}"
            token = demo_token(environ["JWT_SECRET"])
            say(HINTS.format(url=url, token=token, admin_token=environ["ADMIN_TOKEN"]))
            if load:
                Visitors(ports["gateway"], stop)
        while not stop.wait(0.2):
            for process in processes:
                process.check()
    finally:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in processes:
            process.end(deadline)
        shutil.rmtree(store, ignore_errors=True)


def main() -> int:
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--port-base", type=int, default=3000, metavar="N", help="use the ports N to N+3"
    )
    parser.add_argument(
        "--no-load", action="store_true", help="send no requests of its own to the gateway"
    )
    given = parser.parse_args()
    base = given.port_base
    if not 1 <= base <= 65532:
        parser.error(f"--port-base is 1 to 65532, not {base}")
    try:
        ports = {name: base + place for place, name in enumerate(("gateway", *SERVICES))}
        run(ports, stop, load=not given.no_load)
    except Failed as error:
        say(f"demo: {error}", to=2)
        return 1
    say("The shop is closed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
