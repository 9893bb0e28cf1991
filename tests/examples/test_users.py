"""The shop's user service."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import jwt
import pytest

ADA = {"name": "Ada", "email": "ada@example.com", "password": "correct horse"}


@pytest.fixture
def module(load):
    return load("users")


@pytest.fixture
def client(module):
    return module.app.test_client()


def test_registering_answers_201_with_the_user_and_without_the_password(client):
    answer = client.post("/register", json=ADA)
    assert answer.status_code == 201
    assert answer.json == {
        "success": True,
        "message": "User registered successfully!",
        "user": {"id": 2, "name": "Ada", "email": "ada@example.com", "role": "customer"},
    }


def test_passwords_are_kept_as_salted_hashes_only(module, client):
    client.post("/register", json=ADA)
    client.post("/register", json={**ADA, "email": "other@example.com"})
    hashes = {user.password for user in module.users.all()}
    assert len(hashes) == 3
    assert all("$" in kept and ADA["password"] not in kept for kept in hashes)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": "  "}, "name"),
        ({"name": 7}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "A\x00da"}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"email": None}, "email"),
        ({"email": "ada"}, "email"),
        ({"email": "ada@example"}, "email"),
        ({"email": "a da@example.com"}, "email"),
        ({"email": "a" * 250 + "@example.com"}, "email"),
        ({"password": None}, "password"),
        ({"password": "1234567"}, "password"),
        ({"password": "x" * 129}, "password"),
        ({"password": "correct\ud800horse"}, "password"),
    ],
)
def test_registering_with_a_bad_field_is_a_400_that_names_it(loaded, change, named):
    client = loaded["users"].app.test_client()
    answer = client.post("/register", json={**ADA, **change})
    assert answer.status_code == 400
    assert answer.json["success"] is False
    assert answer.json["message"].startswith(named)


def test_one_email_address_is_one_user_however_it_is_written(client):
    assert client.post("/register", json=ADA).status_code == 201
    answer = client.post("/register", json={**ADA, "email": "  ADA@Example.com "})
    assert answer.status_code == 409
    assert answer.json == {
        "success": False,
        "message": "A user with this email exists already!",
    }


def test_registering_the_same_address_from_many_threads_makes_one_user(module):
    def register(_):
        return module.app.test_client().post("/register", json=ADA).status_code

    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(register, range(4)))
    assert statuses == [201, 409, 409, 409]


def test_logging_in_answers_with_a_token_for_an_hour(client):
    client.post("/register", json=ADA)
    answer = client.post("/login", json={"email": "ADA@example.com", "password": ADA["password"]})
    assert answer.status_code == 200
    document = answer.json
    token = document.pop("token")
    assert document == {
        "success": True,
        "message": "Login successful!",
        "expiresIn": 3600,
        "user": {"id": 2, "name": "Ada", "email": "ada@example.com", "role": "customer"},
    }
    assert answer.headers["Cache-Control"] == "no-store"
    claims = jwt.decode(token, "tests-need-32-bytes-of-a-secret-too", ["HS256"])
    assert claims["exp"] - claims.pop("iat") == 3600
    assert abs(claims.pop("exp") - time.time() - 3600) < 60
    assert claims == {"sub": "2", "name": "Ada", "role": "customer"}


@pytest.mark.parametrize(
    ("email", "password"),
    [
        ("ada@example.com", "wrong horse"),
        ("nobody@example.com", "correct horse"),
        ("demo@example.com", "demo password"),
    ],
)
def test_a_wrong_password_and_an_unknown_address_are_the_same_401(client, email, password):
    client.post("/register", json=ADA)
    answer = client.post("/login", json={"email": email, "password": password})
    assert answer.status_code == 401
    assert answer.json == {"success": False, "message": "Invalid email or password!"}


@pytest.mark.parametrize("missing", ["email", "password"])
def test_logging_in_without_a_field_is_a_400_that_names_it(loaded, missing):
    client = loaded["users"].app.test_client()
    body = {"email": "ada@example.com", "password": "correct horse"}
    del body[missing]
    answer = client.post("/login", json=body)
    assert answer.status_code == 400
    assert answer.json["message"] == f"{missing} is required!"


def test_logging_out_needs_nothing(loaded):
    answer = loaded["users"].app.test_client().post("/logout")
    assert answer.status_code == 200
    assert answer.json == {"success": True, "message": "Logout successful!"}


@pytest.mark.parametrize("path", ["/", "/users"])
def test_the_list_shows_names_but_no_addresses(client, path):
    client.post("/register", json=ADA)
    answer = client.get(path, headers={"X-User-Id": "2"})
    assert answer.json == {
        "success": True,
        "users": [{"id": 1, "name": "Demo User"}, {"id": 2, "name": "Ada"}],
        "count": 2,
    }


@pytest.mark.parametrize("path", ["/profile", "/2", "/users/2"])
def test_a_user_sees_all_of_itself(client, path):
    client.post("/register", json=ADA)
    answer = client.get(path, headers={"X-User-Id": "2"})
    assert answer.json == {
        "success": True,
        "user": {"id": 2, "name": "Ada", "email": "ada@example.com", "role": "customer"},
    }


def test_a_user_sees_the_name_of_another(loaded):
    answer = loaded["users"].app.test_client().get("/1", headers={"X-User-Id": "2"})
    assert answer.json == {"success": True, "user": {"id": 1, "name": "Demo User"}}


@pytest.mark.parametrize("path", ["/profile", "/99"])
def test_an_unknown_user_is_a_404(loaded, path):
    answer = loaded["users"].app.test_client().get(path, headers={"X-User-Id": "99"})
    assert answer.status_code == 404
    assert answer.json == {"success": False, "message": "User not found!"}


@pytest.mark.parametrize("secret", [None, "", "x" * 31])
def test_the_service_does_not_start_with_a_secret_that_can_be_guessed(load, monkeypatch, secret):
    if secret is None:
        monkeypatch.delenv("JWT_SECRET")
    else:
        monkeypatch.setenv("JWT_SECRET", secret)
    with pytest.raises(RuntimeError, match="JWT_SECRET must be set, to at least 32 bytes"):
        load("users")
