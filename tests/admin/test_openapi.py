"""The OpenAPI document: derived from the endpoints and from the types of their documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from werkzeug.test import Client

from tests.support.admin import admin_routes
from wsgigate.admin.access import Role
from wsgigate.admin.api import AdminEndpoint, Group
from wsgigate.admin.openapi import openapi_document, openapi_group
from wsgigate.admin.schemas import schema_of
from wsgigate.proxy.dispatcher import Dispatcher


class Leaf(TypedDict):
    """A leaf."""

    size: Annotated[int, "Its size."]
    kind: NotRequired[Literal["oak", "elm"]]


class Tree(TypedDict):
    leaves: list[Leaf]
    parent: NotRequired[Tree]


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (str, {"type": "string"}),
        (float | None, {"anyOf": [{"type": "number"}, {"type": "null"}]}),
        (Mapping[str, bool], {"type": "object", "additionalProperties": {"type": "boolean"}}),
        (Sequence[int], {"type": "array", "items": {"type": "integer"}}),
        (
            Annotated[int, "A number.", {"minimum": 1}],
            {"type": "integer", "description": "A number.", "minimum": 1},
        ),
        (Literal["a", "b"], {"enum": ["a", "b"]}),
        (Any, {}),
    ],
)
def test_the_schema_of_a_type(hint: Any, schema: dict[str, Any]) -> None:
    assert schema_of(hint, {}) == schema


def test_a_typed_dict_is_a_definition() -> None:
    definitions: dict[str, Any] = {}
    assert schema_of(Tree, definitions) == {"$ref": "#/components/schemas/Tree"}
    assert definitions == {
        "Tree": {
            "type": "object",
            "required": ["leaves"],
            "properties": {
                "leaves": {"type": "array", "items": {"$ref": "#/components/schemas/Leaf"}},
                "parent": {"$ref": "#/components/schemas/Tree"},
            },
        },
        "Leaf": {
            "type": "object",
            "description": "A leaf.",
            "required": ["size"],
            "properties": {
                "size": {"type": "integer", "description": "Its size."},
                "kind": {"enum": ["oak", "elm"]},
            },
        },
    }


def test_a_type_that_no_schema_describes_is_an_error() -> None:
    with pytest.raises(TypeError, match="no JSON Schema describes"):
        schema_of(bytes, {})


def answer(request: Any, **_: str) -> object:
    return {"size": 1}


GROUP = Group(
    "trees",
    [
        AdminEndpoint("GET /trees/{name}", answer, "A tree", Leaf, query={"depth": "How deep."}),
        AdminEndpoint("PUT /trees/{name}", answer, "Plant a tree", Leaf, body=Leaf, status=201),
        AdminEndpoint(
            "DELETE /trees", answer, "Cut one", Leaf, query={"name": "Its."}, query_required=True
        ),
        AdminEndpoint("GET /public", answer, "Anyone", Leaf, role=Role.PUBLIC),
    ],
)


def test_an_endpoint_is_described() -> None:
    document = openapi_document([GROUP], "/_g")
    assert document["openapi"] == "3.1.0"
    assert document["servers"] == [{"url": "/_g"}]
    assert [*document["paths"]] == ["/public", "/trees", "/trees/{name}"]
    read, write = (document["paths"]["/trees/{name}"][each] for each in ("get", "put"))
    assert [each["name"] for each in read["parameters"]] == ["name", "depth", "If-None-Match"]
    assert [each["name"] for each in write["parameters"]] == ["name", "If-Match"]
    [depth] = [each for each in read["parameters"] if each["in"] == "query"]
    [name] = [e for e in document["paths"]["/trees"]["delete"]["parameters"] if e["in"] == "query"]
    assert (depth["required"], name["required"]) == (False, True)
    assert read["security"] == [{"viewer": []}, {"admin": []}]
    assert write["security"] == [{"admin": []}]
    assert document["paths"]["/public"]["get"]["security"] == []
    assert {"200", "304", "401", "403", "404", "429", "default"} <= {*read["responses"]}
    assert {"201", "401", "403", "404", "412", "413", "415"} <= {*write["responses"]}
    assert "304" not in write["responses"]
    assert write["requestBody"]["required"] is True


def test_the_document_describes_itself_and_needs_no_token() -> None:
    group = openapi_group([GROUP], "")
    response = Client(Dispatcher(admin_routes(group, token=None))).get("/openapi.json")
    assert response.json is not None
    assert "/openapi.json" in response.json["paths"]
