"""The shop's order service, which asks a real product service over a real socket."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.support.ports import refused_port

ADA = {"X-User-Id": "2", "X-User-Role": "customer"}
BOB = {"X-User-Id": "3", "X-User-Role": "customer"}
ADMIN = {"X-User-Id": "1", "X-User-Role": "admin"}


class Quiet(WSGIRequestHandler):
    def log(self, type, message, *args):
        pass


@pytest.fixture
def product_service(load):
    """The address of a product service that answers."""
    server = make_server("127.0.0.1", 0, load("products").app, request_handler=Quiet)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(load, monkeypatch, product_service):
    monkeypatch.setenv("PRODUCT_SERVICE_URL", product_service)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # not to be asked
    return load("orders").app.test_client()


def buy(client, *items, headers=ADA):
    body = {"items": [{"productId": product, "quantity": many} for product, many in items]}
    return client.post("/", json=body, headers=headers)


def test_an_order_has_the_products_names_prices_and_a_total(client):
    answer = buy(client, (7, 2), (6, 3))
    assert answer.status_code == 201
    assert answer.headers["Location"] == "/1"
    document = answer.json
    assert document["order"].pop("createdAt").endswith("Z")
    assert document == {
        "success": True,
        "message": "Order created successfully!",
        "order": {
            "id": 1,
            "userId": 2,
            "items": [
                {"productId": 7, "name": "Coffee Table", "quantity": 2, "priceCents": 17900},
                {"productId": 6, "name": "Notebook, dotted", "quantity": 3, "priceCents": 1290},
            ],
            "totalCents": 39670,
            "status": "created",
        },
    }


def test_the_price_that_a_client_sends_is_not_the_price(client):
    item = {"productId": 7, "quantity": 1, "priceCents": 1}
    answer = client.post("/", json={"items": [item], "totalCents": 1}, headers=ADA)
    assert answer.json["order"]["totalCents"] == 17900


def test_what_was_created_is_found_where_its_location_says(client):
    created = buy(client, (1, 1))
    shown = client.get(created.headers["Location"], headers=ADA)
    assert shown.status_code == 200
    assert shown.json == {"success": True, "order": created.json["order"]}


@pytest.mark.parametrize("path", ["/", "/orders"])
def test_the_list_has_the_callers_own_orders_only(client, path):
    buy(client, (1, 1))
    buy(client, (2, 1), headers=BOB)
    buy(client, (3, 1))
    answer = client.get(path, headers=ADA)
    assert answer.status_code == 200
    assert answer.json["success"] is True
    assert answer.json["count"] == 2
    assert [order["id"] for order in answer.json["orders"]] == [1, 3]


@pytest.mark.parametrize(
    ("headers", "status"), [(ADA, 200), (BOB, 404), (ADMIN, 200)], ids=["own", "other", "admin"]
)
def test_an_order_is_shown_to_who_made_it_and_to_admins(client, headers, status):
    buy(client, (1, 1))
    for path in ("/1", "/orders/1"):
        assert client.get(path, headers=headers).status_code == status


def test_somebody_elses_order_looks_like_one_that_does_not_exist(client):
    buy(client, (1, 1))
    other, unknown = client.get("/1", headers=BOB), client.get("/99", headers=BOB)
    assert other.status_code == unknown.status_code == 404
    assert other.json == unknown.json == {"success": False, "message": "Order not found!"}


GOOD = {"productId": 1, "quantity": 1}


@pytest.mark.parametrize(
    ("items", "named"),
    [
        (None, "items "),
        ({}, "items "),
        ([], "items "),
        ([GOOD] * 21, "items "),
        ([GOOD, 7], "items[1] "),
        ([{"quantity": 1}], "items[0].productId "),
        ([{"productId": "1", "quantity": 1}], "items[0].productId "),
        ([{"productId": True, "quantity": 1}], "items[0].productId "),
        ([{"productId": 1.0, "quantity": 1}], "items[0].productId "),
        ([{"productId": 1}], "items[0].quantity "),
        ([{"productId": 1, "quantity": "2"}], "items[0].quantity "),
        ([{"productId": 1, "quantity": True}], "items[0].quantity "),
        ([{"productId": 1, "quantity": 0}], "items[0].quantity "),
        ([{"productId": 1, "quantity": -1}], "items[0].quantity "),
        ([{"productId": 1, "quantity": 101}], "items[0].quantity "),
        ([GOOD, {"productId": 99, "quantity": 1}], "items[1].productId "),
    ],
)
def test_a_bad_order_is_a_400_that_names_the_field_and_creates_nothing(client, items, named):
    answer = client.post("/", json={"items": items}, headers=ADA)
    assert answer.status_code == 400
    assert answer.json["success"] is False
    assert answer.json["message"].startswith(named)
    assert client.get("/", headers=ADA).json["count"] == 0


def test_orders_of_many_threads_get_different_numbers(load, client):
    module = load("orders")

    def order(_):
        answer = buy(module.app.test_client(), (1, 1))
        return answer.json["order"]["id"]

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(order, range(16))) == list(range(1, 17))


def test_without_the_product_service_an_order_is_a_503_and_nothing_is_created(load, monkeypatch):
    with refused_port() as port:
        monkeypatch.setenv("PRODUCT_SERVICE_URL", f"http://127.0.0.1:{port}")
        module = load("orders")
        module.app.logger.disabled = True
        client = module.app.test_client()
        answer = buy(client, (1, 1))
    assert answer.status_code == 503
    assert answer.json["success"] is False
    assert "127.0.0.1" not in answer.json["message"]
    assert client.get("/", headers=ADA).json["count"] == 0
