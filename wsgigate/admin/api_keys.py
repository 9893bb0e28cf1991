"""Endpoints for API keys: list, create, rotate and revoke them.

All of them require a token, also the list: it names partners and their plans. A key is in
one response only, that to its creation or rotation. Each change is a record in the audit log.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, NotRequired, TypedDict

from wsgigate.admin.api import AdminEndpoint, Group
from wsgigate.admin.operations import store_errors
from wsgigate.auth.api_keys import KeyRecord, document_of
from wsgigate.coordination.api_keys import ApiKeys, IssuedKey, UnknownRecord
from wsgigate.http.bodies import wrong
from wsgigate.http.json_app import JsonRequest, JsonResponse
from wsgigate.http.problem import Problem
from wsgigate.store import StoreError
from wsgigate.telemetry.audit import AuditedChange, audited, requester
from wsgigate.units import iso_time, parse_duration

__all__ = ["api_key_group", "listed", "note_key"]

LARGEST = 16 * 1024
"""The maximum size of a body, in bytes."""

_CREATE = ("owner", "plan", "scopes", "name", "expires")


def listed(keys: ApiKeys) -> list[dict[str, Any]]:
    """Return the records as JSON members, without digests, with ``lastUsed`` if that is known.

    :raises StoreError: The keys cannot be read.
    """
    records = keys.records()
    try:
        used = keys.last_used()
    except StoreError:  # keys in a file are listed while the store fails
        used = {}
    return [
        document_of(record, digests=False)
        | ({"lastUsed": iso_time(used[record.id])} if record.id in used else {})
        for record in records
    ]


class ApiKey(TypedDict):
    """The record of an API key, without the key itself."""

    id: str
    owner: str
    plan: NotRequired[str]
    scopes: NotRequired[list[str]]
    name: NotRequired[str]
    created: NotRequired[str]
    expires: NotRequired[str]
    revoked: NotRequired[str]
    previous: NotRequired[Annotated[list[dict[str, Any]], "Until when replaced keys are valid."]]
    lastUsed: NotRequired[str]


class ApiKeyList(TypedDict):
    """The API keys."""

    success: bool
    apiKeys: list[ApiKey]


class OneApiKey(TypedDict):
    """An API key that was changed."""

    success: bool
    apiKey: ApiKey


class NewApiKey(TypedDict):
    """An API key that was issued."""

    success: bool
    key: Annotated[str, "The key, which is shown once."]
    apiKey: ApiKey


class ApiKeyRequest(TypedDict):
    """A key to create."""

    owner: str
    plan: NotRequired[str]
    scopes: NotRequired[list[str]]
    name: NotRequired[str]
    expires: NotRequired[
        Annotated[float | str | None, 'How long it is valid, such as "90d". Default: no limit.']
    ]


class Rotation(TypedDict):
    """How a key is replaced."""

    overlap: NotRequired[Annotated[float | str | None, "How long the old key stays valid."]]


class Nothing(TypedDict):
    """An empty object."""


def api_key_group(keys: ApiKeys) -> Group:
    """Return the endpoints of ``/api-keys``.

    GET lists the keys; POST creates one from ``owner`` and, optionally, ``plan``, ``scopes``,
    ``name`` and ``expires``, the time after which it expires, such as ``"90d"``. POST of
    ``/api-keys/{id}/rotate`` with an optional ``overlap`` replaces a key by a new one, and POST of
    ``/api-keys/{id}/revoke`` revokes it.
    """

    def show(request: JsonRequest) -> object:
        return {"success": True, "apiKeys": listed(keys)}

    def create(request: JsonRequest) -> object:
        body = _members(request, _CREATE)
        scopes = body.get("scopes", [])
        if not isinstance(scopes, list):
            raise wrong('scopes: must be a list such as ["orders:read"].', "scopes")
        lasts = _duration(body, "expires")
        try:
            with audited("api-key.create", "", by=requester(request.environ)) as change:
                issued = keys.create(
                    body.get("owner", ""),
                    plan=body.get("plan", ""),
                    scopes=scopes,
                    name=body.get("name", ""),
                    lasts=lasts,
                )
                note_key(change, issued.record)
        except ValueError as error:
            raise _wrong(error) from None
        return _issued(issued, 201)

    def rotate(request: JsonRequest, id: str) -> object:
        body = _members(request, ("overlap",)) if request.has_body() else {}
        overlap = _duration(body, "overlap")
        try:
            with audited("api-key.rotate", id, by=requester(request.environ)) as change:
                issued = keys.rotate(id, overlap=overlap)
                note_key(change, issued.record)
        except UnknownRecord:
            return Problem(404, "API key not found!")
        except ValueError as error:
            raise _wrong(error) from None
        return _issued(issued, 200)

    def revoke(request: JsonRequest, id: str) -> object:
        if request.has_body():
            _members(request, ())
        try:
            with audited("api-key.revoke", id, by=requester(request.environ)) as change:
                record = keys.revoke(id)
                note_key(change, record)
        except UnknownRecord:
            return Problem(404, "API key not found!")
        except ValueError as error:
            raise _wrong(error) from None
        return {"success": True, "apiKey": document_of(record, digests=False)}

    def listing(request: JsonRequest, **_: str) -> object:
        return show(request)

    return Group(
        "API keys",
        [
            AdminEndpoint(
                line="GET /api-keys",
                answer=show,
                summary="API keys, without the keys themselves",
                response=ApiKeyList,
                yields=False,
            ),
            AdminEndpoint(
                line="POST /api-keys",
                answer=create,
                summary="Create an API key",
                body=ApiKeyRequest,
                response=NewApiKey,
                status=201,
                yields=False,
            ),
            AdminEndpoint(
                line="POST /api-keys/{id}/rotate",
                answer=rotate,
                summary="Replace an API key",
                body=Rotation,
                body_optional=True,
                response=NewApiKey,
                current=listing,
                yields=False,
            ),
            AdminEndpoint(
                line="POST /api-keys/{id}/revoke",
                answer=revoke,
                summary="Revoke an API key",
                body=Nothing,
                body_optional=True,
                response=OneApiKey,
                current=listing,
                yields=False,
            ),
        ],
        errors=store_errors(
            "The API keys cannot be read or written at the moment. "
            "A change may or may not have taken effect.",
            "the API keys cannot be read or written",
        ),
        largest=LARGEST,
    )


def _members(request: JsonRequest, known: Collection[str]) -> dict[str, Any]:
    body = request.json()
    for field in body:
        if field not in known:
            allowed = f"known are {', '.join(known)}" if known else "there is none"
            raise wrong(f"{field[:64]!a}: unknown field; {allowed}.", field[:64])
    return body


def _duration(body: Mapping[str, Any], field: str) -> float | None:
    if body.get(field) is None:
        return None
    try:
        return parse_duration(body[field])
    except ValueError as error:
        raise wrong(f"{field}: {error}.", field) from None


def _wrong(error: ValueError) -> Exception:
    return wrong(f"{error}.", str(error).partition(":")[0])


def note_key(change: AuditedChange, record: KeyRecord) -> None:
    """Set what the audit log has of a key that was created or changed: its record, no digest."""
    change.target = f"{record.id} of owner {record.owner}"
    change.after = document_of(record, digests=False)


def _issued(issued: IssuedKey, status: int) -> JsonResponse:
    record = document_of(issued.record, digests=False)
    return JsonResponse({"success": True, "key": issued.key, "apiKey": record}, status)
