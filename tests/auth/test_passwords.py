"""HTTP Basic: the field, the file of users, and how many passwords are verified."""

from __future__ import annotations

import base64
import re
import threading
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from hypothesis import given
from hypothesis import strategies as st

from tests.support.waiting import until
from wsgigate.auth.passwords import (
    LONGEST_PASSWORD,
    WAITING,
    BadCredentials,
    Busy,
    Credentials,
    Passwords,
    check_user,
    credentials_of,
    hash_password,
    read_users,
)
from wsgigate.testing import FakeClock

QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
# of "secret"; always the same, as it is in the names of tests
HASH = (
    "$argon2id$v=19$m=8,t=1,p=1$a7a43sa2IDTmRXdeoPOdHQ$g16u3frO7BKmlBTSIizs86I+cWKK/L4VbvtC8ESh6uI"
)
ANN = Credentials("ann", "secret")


def basic(text: str | bytes, scheme: str = "Basic") -> str:
    data = text.encode() if isinstance(text, str) else text
    return f"{scheme} {base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (basic("ann:secret"), ANN),
        (basic("ann:secret", "basic"), ANN),
        (basic("ann:"), Credentials("ann", "")),
        (basic("ann:a:b"), Credentials("ann", "a:b")),
        (basic("jürgen:päß"), Credentials("jürgen", "päß")),
        ("Bearer abc", None),
        ("Basicx abc", None),
        ("", None),
    ],
)
def test_a_field_has_a_user_and_a_password(value: str, found: Credentials | None) -> None:
    assert credentials_of(value) == found


@pytest.mark.parametrize(
    "value",
    [
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic YW5uOnNlY3JldA",  # without its padding
        basic("ann"),
        basic(":secret"),
        basic("a\nb:secret"),
        basic("ann:sec\0ret"),
        basic(b"ann:\xff"),
        basic("ann:" + "x" * (LONGEST_PASSWORD + 1)),
        basic("a" * 257 + ":x"),
        "Basic " + "A" * 5000,
        f"{basic('ann:secret')},{basic('bob:secret')}",
        "Basic \xe4\xf6",
    ],
)
def test_a_malformed_field_is_rejected_without_showing_it(value: str) -> None:
    with pytest.raises(BadCredentials) as raised:
        credentials_of(value)
    assert "secret" not in str(raised.value)
    assert "YW5u" not in str(raised.value)


@given(st.text())
def test_no_field_raises_anything_else(text: str) -> None:
    for value in (text, f"Basic {text}"):
        try:
            credentials_of(value)
        except BadCredentials:
            continue


# The file.


def test_a_file_has_a_user_on_each_line() -> None:
    data = f"# users\n\nann:{HASH}\r\n  bob:{HASH}  \n".encode()
    assert read_users(data) == ({"ann": HASH, "bob": HASH}, [])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("ann", "line 1: it has no argon2 hash; make one with: wsgigate password USER"),
        ("ann:secret", "line 1: it has no argon2 hash"),
        ("ann:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC", "a bcrypt hash"),
        ("ann:$apr1$x$y", "an MD5 hash of Apache"),
        ("ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "a SHA-1 hash"),
        (":" + HASH, "user: 1 to 256 characters"),
        ("ann:" + HASH.replace("m=8", "m=9999999"), "at most are m=1048576"),
        ("ann:" + HASH.replace("t=1", "t=999"), "t=50"),
        (f"ann:{HASH}\nann:{HASH}", "line 2: user 'ann' is on an earlier line, too"),
    ],
)
def test_a_bad_line_is_named_and_its_secret_is_not_shown(line: str, error: str) -> None:
    _, errors = read_users(line.encode())
    assert error in errors[0]
    assert "secret" not in errors[0]
    assert "c4WoMPo3" not in errors[0]


def test_a_file_that_is_no_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="not UTF-8"):
        read_users(b"\xff")


@pytest.mark.parametrize("user", ["", "a:b", "a\nb", "#ann", " ann", "x" * 257])
def test_a_name_that_cannot_be_on_a_line_is_an_error(user: str) -> None:
    with pytest.raises(ValueError, match=r"^user: 1 to 256"):
        check_user(user)


def test_a_password_is_hashed_with_the_parameters_of_rfc_9106() -> None:
    hashed = hash_password("secret")
    assert re.match(r"\$argon2id\$v=19\$m=65536,t=3,p=4\$", hashed)
    assert read_users(f"ann:{hashed}".encode())[1] == []
    for wrong in ("", "x" * (LONGEST_PASSWORD + 1)):
        with pytest.raises(ValueError, match=r"^password: "):
            hash_password(wrong)


# Verification.


class Counting:
    """Stands in for argon2: counts what it verifies, and may be held up."""

    def __init__(self) -> None:
        self.hashes: list[str] = []
        self.held = threading.Event()
        self.held.set()

    def __call__(self, hashed: str, password: str) -> bool:
        self.hashes.append(hashed)
        assert self.held.wait(30)
        return password == "secret"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(0.0)


@pytest.fixture
def argon() -> Counting:
    return Counting()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text(f"ann:{HASH}\n")
    return path


@pytest.fixture
def passwords(file: Path, clock: FakeClock, argon: Counting) -> Passwords:
    return Passwords(str(file), matches=argon, clock=clock)


def check(passwords: Passwords, given: Credentials, address: str = "192.0.2.7") -> bool:
    known = passwords.remembered(given, address)
    return passwords.verify(given, address) if known is None else known


def test_argon2_itself_decides(file: Path) -> None:
    real = Passwords(str(file))
    assert check(real, ANN)
    for wrong in (Credentials("ann", "Secret"), Credentials("bob", "secret")):
        assert not check(real, wrong)


def test_right_and_wrong_credentials_are_verified_once_a_minute(
    passwords: Passwords, argon: Counting, clock: FakeClock
) -> None:
    wrong = Credentials("ann", "wrong")
    for _ in range(5):
        assert check(passwords, ANN)
        assert not check(passwords, wrong)
    assert len(argon.hashes) == 2
    clock.advance(60)
    assert check(passwords, ANN)
    assert len(argon.hashes) == 3


def test_another_address_must_ask_but_costs_no_verification(
    passwords: Passwords, argon: Counting
) -> None:
    assert check(passwords, ANN)
    assert passwords.remembered(ANN, "192.0.2.7")
    assert passwords.remembered(ANN, "192.0.2.8") is None
    assert passwords.verify(ANN, "192.0.2.8")
    assert passwords.remembered(ANN, "192.0.2.8")
    assert len(argon.hashes) == 1


def test_an_unknown_user_costs_what_a_known_one_costs(file: Path, clock: FakeClock) -> None:
    slow = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1).hash("secret")
    file.write_text(f"ann:{HASH}\nbob:{slow}\n")
    argon = Counting()
    passwords = Passwords(str(file), matches=argon, clock=clock)
    for number in range(40):
        assert not check(passwords, Credentials(f"user{number}", "secret"))
        assert not check(passwords, Credentials(f"user{number}", "other"))
    beginnings = [re.sub(r"\$[^$]*\$[^$]*$", "", each) for each in argon.hashes]
    assert set(beginnings) == {"$argon2id$v=19$m=8,t=1,p=1", "$argon2id$v=19$m=16,t=2,p=1"}
    assert beginnings[::2] == beginnings[1::2], "the same for each password of a user"
    assert HASH not in argon.hashes


def test_a_change_of_the_file_ends_what_is_remembered(
    passwords: Passwords, file: Path, clock: FakeClock
) -> None:
    assert check(passwords, ANN)
    assert passwords.seen(ANN, "192.0.2.7")
    assert not passwords.seen(ANN, "192.0.2.8")
    draft = file.with_suffix(".new")
    draft.write_text(f"bob:{HASH}\n")
    draft.replace(file)
    clock.advance(0.5)
    assert not check(passwords, ANN)
    assert not passwords.seen(ANN, "192.0.2.7")
    assert check(passwords, Credentials("bob", "secret"))


def test_few_are_verified_at_a_time_and_few_wait(file: Path, argon: Counting) -> None:
    passwords = Passwords(str(file), most=1, matches=argon, patience=30)
    argon.held.clear()
    results: list[object] = []

    def login(number: int) -> None:
        try:
            results.append(check(passwords, Credentials("ann", f"wrong {number}")))
        except Busy:
            results.append(Busy)

    threads = [threading.Thread(target=login, args=(number,)) for number in range(WAITING + 3)]
    for thread in threads:
        thread.start()
    until(lambda: len(results) == 2)
    assert results == [Busy, Busy], "one is verified, and as many wait as may"
    assert len(argon.hashes) == 1
    argon.held.set()
    for thread in threads:
        thread.join(30)
    assert results[2:] == [False] * (WAITING + 1)


def test_one_verification_answers_all_who_wait_for_the_same(file: Path, argon: Counting) -> None:
    passwords = Passwords(str(file), most=1, matches=argon, patience=30)
    argon.held.clear()
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(check(passwords, ANN)))
        for _ in range(1 + WAITING)
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(argon.hashes) == 1)
    argon.held.set()
    for thread in threads:
        thread.join(30)
    assert results == [True] * (1 + WAITING)
    assert len(argon.hashes) == 1


def test_no_request_waits_for_long(file: Path, argon: Counting) -> None:
    passwords = Passwords(str(file), most=1, matches=argon, patience=0.01)
    argon.held.clear()
    first = threading.Thread(target=lambda: check(passwords, ANN))
    first.start()
    until(lambda: len(argon.hashes) == 1)
    with pytest.raises(Busy):
        check(passwords, Credentials("ann", "other"))
    argon.held.set()
    first.join(30)
    assert check(passwords, ANN)
