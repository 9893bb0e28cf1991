"""The user service: registration, login and profiles. In memory, lost when the process exits."""

from __future__ import annotations

import os
import re
import secrets
import time
from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import Any

import jwt
from service import caller, create_app, fail, json_body, text
from werkzeug.security import check_password_hash, generate_password_hash

__all__ = ["app"]

TOKEN_SECONDS = 3600
EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")

SECRET = os.environ.get("JWT_SECRET", "")
if len(SECRET.encode()) < 32:  # RFC 7518, section 3.2: as long as the hash of HS256
    raise RuntimeError("JWT_SECRET must be set, to at least 32 bytes")

NOBODY = generate_password_hash(secrets.token_hex())  # the hash of an unknown, random password


@dataclass(frozen=True)
class User:
    """One user; *password* is its salted hash."""

    id: int
    name: str
    email: str
    password: str
    role: str = "customer"

    def public(self) -> dict[str, Any]:
        """Return the fields that every user may read."""
        return {"id": self.id, "name": self.name}

    def own(self) -> dict[str, Any]:
        """Return the fields that only this user may read."""
        return {"id": self.id, "name": self.name, "email": self.email, "role": self.role}


class Users:
    """All users, found by id and by email address; one address is one user."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._ids = count(1)
        self._by_id: dict[int, User] = {}
        self._by_email: dict[str, User] = {}

    def add(self, name: str, email: str, password: str) -> User | None:
        """Add a user and return it; ``None`` if the address is in use."""
        with self._lock:
            if email in self._by_email:
                return None
            user = User(next(self._ids), name, email, password)
            self._by_id[user.id] = self._by_email[email] = user
            return user

    def get(self, user_id: int) -> User | None:
        return self._by_id.get(user_id)

    def with_email(self, email: str) -> User | None:
        return self._by_email.get(email)

    def all(self) -> list[User]:
        with self._lock:
            return list(self._by_id.values())


app = create_app("user-service")
users = Users()
users.add("Demo User", "demo@example.com", NOBODY)  # user 1: the demo has a token, not a password


@app.post("/register")
def register() -> tuple[dict[str, Any], int]:
    body = json_body()
    name = text(body, "name", at_most=100).strip()
    email = text(body, "email", at_most=254).strip().lower()
    password = text(body, "password", at_least=8, at_most=128)
    if not EMAIL.fullmatch(email):
        fail(400, "email is not an email address!")
    user = users.add(name, email, generate_password_hash(password))
    if user is None:
        fail(409, "A user with this email exists already!")
    # No Location: the user is under /api/users, but the gateway would prepend /auth.
    return {"success": True, "message": "User registered successfully!", "user": user.own()}, 201


@app.post("/login")
def login() -> tuple[dict[str, Any], int, dict[str, str]]:
    body = json_body()
    email = text(body, "email", at_most=254).strip().lower()
    password = text(body, "password", at_most=128)
    user = users.with_email(email)
    # An unknown address takes as long as a known one, so that timing does not reveal which it is.
    matches = check_password_hash(user.password if user else NOBODY, password)
    if user is None or not matches:
        fail(401, "Invalid email or password!")
    token = {"token": token_for(user), "expiresIn": TOKEN_SECONDS, "user": user.own()}
    answer = {"success": True, "message": "Login successful!", **token}
    return answer, 200, {"Cache-Control": "no-store"}


def token_for(user: User) -> str:
    """Return a signed token that the gateway accepts for the next hour."""
    now = int(time.time())
    claims = {"sub": str(user.id), "name": user.name, "role": user.role}
    return jwt.encode(claims | {"iat": now, "exp": now + TOKEN_SECONDS}, SECRET, "HS256")


@app.post("/logout")
def logout() -> dict[str, Any]:
    # A token is valid until it expires, even if stolen: on logout the client only discards it.
    return {"success": True, "message": "Logout successful!"}


# The gateway forwards /auth/* without a token, and /auth/* reaches every path of this service:
# each view that is not public calls caller() itself.


@app.get("/")
@app.get("/users")
def list_users() -> dict[str, Any]:
    caller()
    found = [user.public() for user in users.all()]
    return {"success": True, "users": found, "count": len(found)}


@app.get("/<int:user_id>")
@app.get("/users/<int:user_id>")
def show_user(user_id: int) -> dict[str, Any]:
    own = caller() == user_id
    user = users.get(user_id) or fail(404, "User not found!")
    return {"success": True, "user": user.own() if own else user.public()}


@app.get("/profile")
def profile() -> dict[str, Any]:
    return show_user(caller())
