"""The order service: the orders of the caller. In memory, lost when the process exits.

Run it alone with ``gunicorn --bind 127.0.0.1:3003 orders:app``; it requests prices from the product
service at ``PRODUCT_SERVICE_URL``.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from itertools import count
from threading import Lock
from typing import Any

import requests
from service import caller, create_app, fail, is_admin, json_body, timestamp

__all__ = ["app"]

PRODUCTS = os.environ.get("PRODUCT_SERVICE_URL", "http://127.0.0.1:3002")
MAX_ITEMS = 20
MAX_QUANTITY = 100


@dataclass(frozen=True)
class Item:
    """One line of an order. The price is the product's at the time of the order, in cents."""

    productId: int
    name: str
    quantity: int
    priceCents: int


@dataclass(frozen=True)
class Order:
    """An order of one user."""

    id: int
    userId: int
    items: tuple[Item, ...]
    totalCents: int
    status: str
    createdAt: str


class Orders:
    """All orders, by id."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._ids = count(1)
        self._by_id: dict[int, Order] = {}

    def add(self, user_id: int, items: tuple[Item, ...]) -> Order:
        total = sum(item.quantity * item.priceCents for item in items)
        with self._lock:
            order = Order(next(self._ids), user_id, items, total, "created", timestamp())
            self._by_id[order.id] = order
            return order

    def get(self, order_id: int) -> Order | None:
        return self._by_id.get(order_id)

    def of(self, user_id: int) -> list[Order]:
        with self._lock:
            return [order for order in self._by_id.values() if order.userId == user_id]


app = create_app("order-service")
orders = Orders()


@app.get("/")
@app.get("/orders")
def list_orders() -> dict[str, Any]:
    own = [asdict(order) for order in orders.of(caller())]
    return {"success": True, "orders": own, "count": len(own)}


@app.get("/<int:order_id>")
@app.get("/orders/<int:order_id>")
def show_order(order_id: int) -> dict[str, Any]:
    user_id = caller()
    order = orders.get(order_id)
    # Another user's order gets the same 404 as an unknown id: a 404 reveals nothing.
    if order is None or not (order.userId == user_id or is_admin()):
        fail(404, "Order not found!")
    return {"success": True, "order": asdict(order)}


@app.post("/")
@app.post("/orders")
def create_order() -> tuple[dict[str, Any], int, dict[str, str]]:
    user_id = caller()
    order = orders.add(user_id, priced(wanted(json_body())))
    answer = {
        "success": True,
        "message": "Order created successfully!",
        "order": asdict(order),
    }
    # A path of this service: the gateway prepends the prefix that it stripped.
    return answer, 201, {"Location": f"/{order.id}"}


def wanted(body: dict[str, Any]) -> list[tuple[int, int]]:
    """Return product id and quantity of each item of *body*; 400 names an invalid field."""
    items = body.get("items")
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_ITEMS:
        fail(400, f"items must be a list of 1 to {MAX_ITEMS} items!")
    found = []
    for place, item in enumerate(items):
        where = f"items[{place}]"
        if not isinstance(item, dict):
            fail(400, f"{where} must be an object with productId and quantity!")
        product_id, quantity = item.get("productId"), item.get("quantity")
        if type(product_id) is not int:  # isinstance would accept True as 1
            fail(400, f"{where}.productId must be a whole number!")
        if type(quantity) is not int or not 1 <= quantity <= MAX_QUANTITY:
            fail(400, f"{where}.quantity must be a whole number from 1 to {MAX_QUANTITY}!")
        found.append((product_id, quantity))
    return found


def priced(items: list[tuple[int, int]]) -> tuple[Item, ...]:
    """Return *items* with the names and prices from the product service."""
    products = ask_products({product_id for product_id, _ in items})
    lines = []
    for place, (product_id, quantity) in enumerate(items):
        product = products.get(product_id)
        if product is None:
            fail(400, f"items[{place}].productId is not sold here!")
        lines.append(Item(product_id, product["name"], quantity, product["priceCents"]))
    return tuple(lines)


def ask_products(ids: set[int]) -> dict[int, dict[str, Any]]:
    try:
        with requests.Session() as session:
            session.trust_env = False  # ignore proxies of the environment
            query = {"ids": ",".join(map(str, sorted(ids)))}
            answer = session.get(f"{PRODUCTS}/products", params=query, timeout=2)
            answer.raise_for_status()
            return {product["id"]: product for product in answer.json()["products"]}
    except requests.RequestException as error:
        app.logger.warning("the product service did not answer: %s", error)
        fail(503, "The products cannot be looked up at the moment, please try again later!")
