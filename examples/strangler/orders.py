"""The new service of the orders. It has no login: the gateway says who the customer is.

It listens for the gateway only; whoever else reaches it can claim to be any customer.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, jsonify, request

ORDERS = {"ada": ["1 analytical engine"], "alan": ["2 enigmas", "1 bombe"]}

app = Flask(__name__)


@app.get("/api/orders")
def orders() -> dict[str, Any]:
    customer = request.headers["X-User-Id"]
    return {"answered_by": "the new service", "customer": customer, "orders": ORDERS[customer]}


@app.post("/api/orders")
def order() -> tuple[dict[str, Any], int]:
    return {"answered_by": "the new service", "customer": request.headers["X-User-Id"]}, 201


@app.get("/api/orders/seen")
def seen() -> Response:
    """Show what a request has on its arrival, and try to log the user out of the shop."""
    response = jsonify(
        cookies=sorted(request.cookies),
        user=request.headers.get("X-User-Id"),
        link=request.host_url,
    )
    response.delete_cookie("session")  # the session of another framework may have this name, too
    return response
