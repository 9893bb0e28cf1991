"""The shop's product service."""

from __future__ import annotations

import pytest


@pytest.fixture
def client(loaded):
    return loaded["products"].app.test_client()


def ids(answer):
    assert answer.status_code == 200
    assert answer.json["success"] is True
    assert answer.json["count"] == len(answer.json["products"])
    return [product["id"] for product in answer.json["products"]]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("/products", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("/?category=office", [4, 5, 6]),
        ("/?category=garden", []),
        ("/?ids=7,1", [1, 7]),
        ("/?ids=99,x,", []),
        ("/search?q=coffee", [2, 7]),
        ("/search?q=COFFEE+kitchen", [2]),
        ("/search?q=spaceship", []),
    ],
)
def test_a_listing_has_the_products_asked_for(client, path, found):
    assert ids(client.get(path)) == found


@pytest.mark.parametrize("path", ["/7", "/products/7"])
def test_one_product_is_shown_whole(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.json == {
        "success": True,
        "product": {
            "id": 7,
            "name": "Coffee Table",
            "category": "living",
            "priceCents": 17900,
        },
    }


def test_an_unknown_product_is_a_404(client):
    answer = client.get("/99")
    assert answer.status_code == 404
    assert answer.json == {"success": False, "message": "Product not found!"}


@pytest.mark.parametrize("path", ["/search", "/search?q=", "/search?q=+"])
def test_a_search_for_nothing_is_a_400_that_names_the_parameter(client, path):
    answer = client.get(path)
    assert answer.status_code == 400
    assert answer.json == {"success": False, "message": "q is required!"}


def test_the_categories_are_listed(client):
    assert client.get("/categories").json == {
        "success": True,
        "categories": ["kitchen", "living", "office"],
        "count": 3,
    }
