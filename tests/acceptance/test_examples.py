"""Every example as its README runs it: real gunicorn workers, real sockets, real signals."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import jwt
import pytest
import requests
from requests.adapters import HTTPAdapter

from tests.examples.lesson import BAD_TOKEN, LESSON, TIME, difference
from tests.support.ports import HOME, free_ports, is_free
from tests.support.waiting import until

EXAMPLES = Path(__file__).parents[2] / "examples"
DEMO = str(EXAMPLES / "shop" / "demo.py")
ADDRESSES = count(1)
SECRET = "tests-need-32-bytes-of-a-secret-too"


def session_of(leader: int) -> list[str]:
    """Return the processes of the session that *leader* began, whoever their parents are."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(session) == leader and state != "Z":
            found.append(stat.parent.name)
    return found


_FOLDERS = ("HOME", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME")


class Program:
    """A program in a session of its own, its output in a file; nothing of it is left behind."""

    def __init__(self, command: list[str], folder: Path, **environ: str) -> None:
        self.home = tempfile.mkdtemp(prefix="wsgigate-")
        self.output = Path(self.home, "output")
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        with self.output.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, *command],
                cwd=folder,
                env={**kept, **dict.fromkeys(_FOLDERS, self.home), **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def told(self) -> str:
        return self.output.read_text()

    def wait_for(self, ready: Callable[[], object]) -> None:
        def ready_or_dead() -> object:
            assert self.popen.poll() is None, self.told()
            return ready()

        until(ready_or_dead)

    def exit_code(self) -> int:
        """Wait for its end and return its exit code; it must have left no process behind."""
        code = self.popen.wait(60)
        until(lambda: not session_of(self.popen.pid))
        return code

    def clean(self) -> None:
        until(self._kill_all)
        self.popen.wait(60)
        shutil.rmtree(self.home)

    def _kill_all(self) -> bool:
        for process in session_of(self.popen.pid):
            try:
                os.kill(int(process), signal.SIGKILL)
            except ProcessLookupError:  # it has just ended
                pass
        return not session_of(self.popen.pid)


@contextmanager
def running(command: list[str], folder: Path, **environ: str) -> Iterator[Program]:
    program = Program(command, folder, **environ)
    try:
        yield program
    finally:
        program.clean()


class Client(requests.Session):
    """A client at an address of its own, so that it has a limit of its own."""

    def __init__(self, url: str, address: str = HOME) -> None:
        super().__init__()
        self.url = url
        self.trust_env = False
        adapter = HTTPAdapter()
        adapter.init_poolmanager(10, 10, source_address=(address, 0))
        self.mount("http://", adapter)

    def ask(self, method: str, path: str, **more: object) -> requests.Response:
        return self.request(method, self.url + path, timeout=30, allow_redirects=False, **more)


def token(**claims: object) -> dict[str, str]:
    claims = {"sub": "1", "exp": int(time.time()) + 600, **claims}
    return {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}


@contextmanager
def as_its_readme_says(example: str, **environ: str) -> Iterator[Client]:
    """Serve an example by the command in its README, on another port."""
    folder = EXAMPLES / example
    line = re.search(r"^    (gunicorn .+)$", (folder / "README.rst").read_text(), re.MULTILINE)
    with gunicorn(line[1], folder, **environ) as client:
        yield client


@contextmanager
def gunicorn(line: str, folder: Path, **environ: str) -> Iterator[Client]:
    port = free_ports()
    command = shlex.split(re.sub(r"127\.0\.0\.1:\d+", f"{HOME}:{port}", line))
    with (
        running(["-m", *command], folder, **environ) as program,
        Client(f"http://{HOME}:{port}") as client,
    ):
        program.wait_for(lambda: not is_free(port))
        yield client


def test_the_flask_example_counts_the_requests_of_both_workers_together():
    with as_its_readme_says("flask") as client:
        first = client.ask("GET", "/hello/Ada")
        assert first.json() == {"message": "Hello, Ada!"}
        assert first.headers["X-RateLimit-Limit"] == "100"
        assert first.headers["X-RateLimit-Remaining"] == "99"
        answers = []
        for _ in range(105):
            with Client(client.url) as other:  # a new connection, for any of the workers
                answers.append(other.ask("GET", "/"))
        assert [answer.status_code for answer in answers[:99]] == [200] * 99
        refused = [answer for answer in answers[99:] if answer.status_code == 429]
        assert refused, "of one that comes back every 9 s there are not six"
        assert refused[0].json()["message"] == "Too many requests! Please try again later."


def test_the_django_example_gives_its_views_the_verified_claims():
    with as_its_readme_says("django", JWT_SECRET=SECRET) as client:
        assert client.ask("GET", "/").json() == {"message": "Hello!"}
        assert client.ask("GET", "/me").status_code == 401
        ada = client.ask("GET", "/me", headers=token(sub="7", name="Ada"))
        assert ada.status_code == 200
        assert ada.json() == {"id": "7", "name": "Ada"}
        for headers in (token(exp=1), {"Authorization": "Bearer made-up"}):
            for path in ("/", "/me"):
                refused = client.ask("GET", path, headers=headers)
                assert refused.status_code == 401
                assert refused.headers["Content-Type"] == "application/problem+json"
                assert refused.headers["WWW-Authenticate"].startswith("Bearer")


class Shop(Program):
    """The shop as ``make demo`` runs it, on other ports."""

    def __init__(self) -> None:
        self.base = free_ports(4)
        super().__init__([DEMO, "--port-base", str(self.base)], EXAMPLES.parent, JWT_SECRET=SECRET)

    def open(self) -> Shop:
        self.wait_for(lambda: "The shop is open" in self.told())
        return self

    def url(self, service: int = 0) -> str:
        return f"http://{HOME}:{self.base + service}"

    def ports_are_free(self) -> bool:
        return all(map(is_free, range(self.base, self.base + 4)))


@contextmanager
def started_shop() -> Iterator[Shop]:
    shop = Shop()
    try:
        yield shop
    finally:
        shop.clean()


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with started_shop() as shop:
        yield shop.open()


@pytest.fixture
def client(shop) -> Iterator[Client]:
    with Client(shop.url(), f"127.0.1.{next(ADDRESSES)}") as client:
        yield client


@pytest.mark.parametrize("line", LESSON)
def test_the_shop_answers_as_the_lesson_does(shop, client, line):
    status, expected = LESSON[line]

    def answer() -> tuple[int, str]:
        got = client.ask(*line.split(" "))
        return got.status_code, difference(got.json(), expected(shop.base))

    # The first round of health checks may still be on its way.
    deadline = time.monotonic() + 60
    while (got := answer()) != (status, "") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert got == (status, "")


@pytest.mark.parametrize("path", ["/api/users", "/api/orders"])
@pytest.mark.parametrize(
    "headers",
    [token(exp=1), {"Authorization": "Bearer made-up"}, token(exp=None)],
    ids=["expired", "made-up", "endless"],
)
def test_a_bad_token_is_the_lessons_403(client, path, headers):
    answer = client.ask("GET", path, headers=headers)
    assert answer.status_code == 403
    assert difference(answer.json(), BAD_TOKEN) == ""


def test_the_hundredth_request_passes_and_the_next_is_the_lessons_429(client):
    for left in range(99, -1, -1):
        answer = client.ask("GET", "/info")
        assert answer.status_code == 200
        assert answer.headers["X-RateLimit-Limit"] == "100"
        assert answer.headers["X-RateLimit-Remaining"] == str(left)
        assert TIME.fullmatch(answer.headers["X-RateLimit-Reset"])
    refused = client.ask("GET", "/api/products")
    assert refused.status_code == 429
    message = "Too many requests! Please try again later."
    expected = {"success": False, "message": message, "retryAfter": int}
    assert difference(refused.json(), expected) == ""
    assert 1 <= refused.json()["retryAfter"] <= 900
    assert int(refused.headers["Retry-After"]) == refused.json()["retryAfter"]
    assert refused.headers["X-RateLimit-Remaining"] == "0"


def test_a_new_user_registers_logs_in_and_orders(client):
    ada = {"name": "Ada", "email": "ada@example.com", "password": "correct horse"}
    registered = client.ask("POST", "/auth/register", json=ada)
    assert registered.status_code == 201
    user = registered.json()["user"]
    assert client.ask("POST", "/auth/register", json=ada).status_code == 409
    wrong = {**ada, "password": "wrong horse"}
    assert client.ask("POST", "/auth/login", json=wrong).status_code == 401
    login = client.ask("POST", "/auth/login", json=ada)
    client.headers["Authorization"] = f"Bearer {login.json()['token']}"
    assert client.ask("GET", "/api/users/profile").json()["user"] == user
    assert client.ask("GET", f"/api/users/{user['id']}").json()["user"] == user

    order = {"items": [{"productId": 7, "quantity": 2}]}
    created = client.ask("POST", "/api/orders", json=order)
    assert created.status_code == 201
    location = created.headers["Location"].removeprefix(client.url)
    assert re.fullmatch(r"/api/orders/\d+", location)
    assert client.ask("GET", location).json()["order"] == created.json()["order"]
    assert created.json()["order"]["totalCents"] == 35800
    assert client.ask("GET", "/api/orders").json()["orders"] == [created.json()["order"]]
    assert client.ask("POST", "/auth/logout").status_code == 200


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/products", {"success": True, "count": 8}),
        ("/api/products/", {"success": True, "count": 8}),
        ("/api/products?category=office", {"success": True, "count": 3}),
        ("/api/products/7", {"success": True, "product": dict}),
        ("/api/products/search?q=coffee", {"success": True, "count": 2}),
        ("/api/products/categories", {"categories": ["kitchen", "living", "office"]}),
        ("/auth/health", {"status": "healthy", "service": "user-service"}),
    ],
)
def test_what_is_public_needs_no_token(client, path, expected):
    answer = client.ask("GET", path)
    assert answer.status_code == 200
    assert difference(answer.json(), expected) == ""


@pytest.mark.parametrize("field", ["X-User-Id", "x-user-id", "X_User_Id"])
def test_a_field_cannot_claim_an_identity(client, field):
    forged = client.ask("GET", "/auth/profile", headers={field: "1"})
    assert forged.status_code in (400, 401)  # an underscore is refused whole
    headers = {**token(sub="99"), field: "1"}
    assert client.ask("GET", "/api/users/profile", headers=headers).status_code in (400, 404)


@pytest.mark.parametrize(
    ("number", "ready"),
    [
        pytest.param(signal.SIGINT, "The shop is open", id="Ctrl-C"),
        pytest.param(signal.SIGTERM, "", id="terminated while it starts"),
        pytest.param(signal.SIGHUP, "The shop is open", id="its terminal closed"),
    ],
)
def test_a_signal_stops_the_whole_shop(number, ready):
    with started_shop() as shop:
        shop.wait_for(lambda: ready in shop.told() and len(session_of(shop.popen.pid)) > 3)
        os.killpg(shop.popen.pid, number)
        assert shop.exit_code() == 0, shop.told()
        assert "Traceback" not in shop.told()
        assert shop.ports_are_free()


def test_a_service_that_dies_ends_the_demo_which_names_it():
    with started_shop() as shop:
        shop.open()
        (master,) = [
            process
            for process in session_of(shop.popen.pid)
            if b"orders:app" in Path("/proc", process, "cmdline").read_bytes()
            and Path("/proc", process, "stat").read_text().split()[3] == str(shop.popen.pid)
        ]
        os.kill(int(master), signal.SIGKILL)
        assert shop.exit_code() == 1
        assert "demo: order-service ended with exit code -9" in shop.told()
        assert "Traceback" not in shop.told()
        assert shop.ports_are_free()


def test_a_taken_port_is_one_clear_line_and_nothing_is_started():
    base = free_ports(4)
    with socket.create_server((HOME, base + 2)):
        command = [DEMO, "--port-base", str(base)]
        with running(command, EXAMPLES.parent) as demo:
            assert demo.exit_code() == 1
            (line,) = demo.told().splitlines()
            assert f"port {base + 2}, for the product-service" in line
            assert "--port-base" in line


def test_a_secret_that_can_be_guessed_is_one_clear_line():
    command = [DEMO, "--port-base", str(free_ports(4))]
    with running(command, EXAMPLES.parent, JWT_SECRET="too short") as demo:
        assert demo.exit_code() == 1
        assert demo.told() == (
            "demo: JWT_SECRET must have at least 32 bytes; unset, the demo makes one up\n"
        )


def test_the_flask_example_of_limits_counts_by_plan_by_cost_and_by_address():
    with as_its_readme_says("limits_flask") as client:
        anonymous = client.ask("GET", "/")
        assert anonymous.headers["X-RateLimit-Limit"] == "20"
        assert '"concurrency";r=9' in anonymous.headers["RateLimit"]
        ada = client.ask("GET", "/", headers={"X-API-Key": "key-of-ada"})
        assert '"api-month";r=999999;' in ada.headers["RateLimit"]
        bob = client.ask("GET", "/report", headers={"X-API-Key": "key-of-bob"})
        assert bob.headers["X-RateLimit-Remaining"] == "90"
        made_up = client.ask("GET", "/", headers={"X-API-Key": "made-up"})
        assert made_up.headers["X-RateLimit-Remaining"] == "18"
        assert client.ask("GET", "/report").status_code == 200
        assert client.ask("GET", "/report").status_code == 429
        logins = [client.ask("POST", "/login") for _ in range(6)]
        assert [each.status_code for each in logins] == [200] * 5 + [429]
        assert logins[5].json()["violated-policies"] == ["login"]
        assert "RateLimit" not in client.ask("GET", "/health").headers


def test_the_django_example_of_limits_counts_what_its_readme_says():
    with as_its_readme_says("limits_django") as client:
        assert client.ask("GET", "/").headers["X-RateLimit-Limit"] == "1000"
        logins = [client.ask("POST", "/login") for _ in range(6)]
        assert [each.status_code for each in logins] == [200] * 5 + [429]
        searches = [client.ask("GET", "/search") for _ in range(45)]
        assert '"search-1s"' in searches[0].headers["RateLimit-Policy"]
        refused = [each for each in searches if each.status_code == 429]
        assert refused, "by one quota or the other, however slow the machine is"
        for each in refused:
            assert set(each.json()["violated-policies"]) <= {"search-1s", "search-1m"}
