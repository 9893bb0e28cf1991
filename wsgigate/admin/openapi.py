"""The description of the gateway's own endpoints, as an OpenAPI 3.1 document.

It is derived from the table of endpoints that is served, so it has every endpoint of this gateway
and none that it lacks. It contains nothing of the configuration but the prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

from wsgigate.admin.access import Role
from wsgigate.admin.api import AdminEndpoint, Group
from wsgigate.admin.schemas import JsonSchema, schema_of
from wsgigate.admin.versions import package_version
from wsgigate.http.json_app import JsonRequest

__all__ = ["OpenApi", "ProblemDocument", "openapi_document", "openapi_group"]


class OpenApi(TypedDict):
    """An OpenAPI document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, dict[str, Any]]
    components: dict[str, Any]
    tags: list[dict[str, str]]
    servers: list[dict[str, str]]


class ProblemDocument(TypedDict):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    success: bool
    message: str


_PARAMETER = re.compile(r"\{(\w+)\}")

_SCHEMES = {
    "admin": {
        "type": "http",
        "scheme": "bearer",
        "description": "admin.token: reads and writes.",
    },
    "viewer": {
        "type": "http",
        "scheme": "bearer",
        "description": "admin.viewer_token: reads.",
    },
}

_SECURITY: dict[Role, list[dict[str, list[str]]]] = {
    Role.PUBLIC: [],
    Role.VIEWER: [{"viewer": []}, {"admin": []}],
    Role.ADMIN: [{"admin": []}],
}


def openapi_document(groups: Iterable[Group], prefix: str) -> OpenApi:
    """Return the OpenAPI 3.1 document of *groups*, whose paths begin with *prefix*."""
    definitions: dict[str, JsonSchema] = {}
    paths: dict[str, dict[str, Any]] = {}
    tags = []
    for group in groups:
        tags.append({"name": group.tag})
        for endpoint in group.endpoints:
            operations = paths.setdefault(endpoint.path, {})
            operations[endpoint.method.lower()] = _operation(endpoint, group.tag, definitions)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "wsgigate admin API",
            "version": package_version("wsgigate"),
            "description": "The gateway's own endpoints.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": prefix or "/"}],
        "tags": tags,
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(definitions.items())),
            "securitySchemes": _SCHEMES,
        },
    }


def openapi_group(groups: Sequence[Group], prefix: str) -> Group:
    """Return the endpoint that serves the description of *groups*, and of itself.

    It needs no token: programs that read it, such as generators of clients, cannot send one, and it
    has nothing that the package's documentation does not have.
    """
    described: list[object] = []

    def show(request: JsonRequest) -> object:
        if not described:  # made once, when it is first asked for
            described.append(openapi_document([*groups, group], prefix))
        return described[0]

    group = Group(
        "description",
        [
            AdminEndpoint(
                line="GET /openapi.json",
                answer=show,
                summary="The OpenAPI document of these endpoints",
                response=OpenApi,
                role=Role.PUBLIC,
            )
        ],
    )
    return group


def _operation(endpoint: AdminEndpoint, tag: str, definitions: dict[str, JsonSchema]) -> JsonSchema:
    words = re.findall(r"[A-Za-z]+", endpoint.line.lower())
    operation: JsonSchema = {
        "operationId": "_".join(words),
        "summary": endpoint.summary,
        "tags": [tag],
        "security": _SECURITY[endpoint.required],
    }
    if endpoint.description:
        operation["description"] = endpoint.description
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(endpoint.path)
    ]
    parameters += [
        {
            "name": name,
            "in": "query",
            "required": endpoint.query_required,
            "description": text,
            "schema": {"type": "string"},
        }
        for name, text in endpoint.query.items()
    ]
    parameters.append(_IF_NONE_MATCH if endpoint.method == "GET" else _IF_MATCH)
    operation["parameters"] = parameters
    if endpoint.body is not None:
        body = schema_of(endpoint.body, definitions)
        if endpoint.body.__name__ in definitions:  # an unknown member of a request is rejected
            definitions[endpoint.body.__name__]["additionalProperties"] = False
        operation["requestBody"] = {
            "required": not endpoint.body_optional,
            "content": {"application/json": {"schema": body}},
        }
    operation["responses"] = _responses(endpoint, definitions)
    return operation


_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "Tags of known documents; 304 if the current one is among them.",
    "schema": {"type": "string"},
}

_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "description": "Carry out the change only while the resource has one of these tags.",
    "schema": {"type": "string"},
}

_REFUSALS = {
    400: "The request is malformed.",
    401: "The token is missing or wrong.",
    403: "The token does not permit this, or the request comes from another site.",
    404: "There is no such resource.",
    412: "The resource has changed since it was read.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "Too many wrong tokens came from this address.",
    503: "The store failed.",
}


def _responses(endpoint: AdminEndpoint, definitions: dict[str, JsonSchema]) -> JsonSchema:
    reads = endpoint.method == "GET"
    problem = schema_of(ProblemDocument, definitions)
    kind = endpoint.content_type
    content = {kind: {"schema": schema_of(endpoint.response, definitions)}}
    success: JsonSchema = {"description": "Success.", "content": content}
    statuses = {400, 503}
    if reads:
        tag = {"description": "The tag of the document.", "schema": {"type": "string"}}
        success["headers"] = {"ETag": tag}
    else:
        statuses |= {412}
    if endpoint.required is not Role.PUBLIC:
        statuses |= {401, 403, 429}
    if "{" in endpoint.path:
        statuses.add(404)
    if endpoint.body is not None:
        statuses |= {413, 415}
    responses = {str(endpoint.status): success}
    if reads:
        responses["304"] = {"description": "The client has the current document."}
    refusals = {"application/problem+json": {"schema": problem}}
    for status in sorted(statuses):
        responses[str(status)] = {"description": _REFUSALS[status], "content": refusals}
    responses["default"] = {"description": "The request failed.", "content": refusals}
    return responses
