"""A monolith that hands one of its paths to a new service, and keeps the rest in its process."""

from __future__ import annotations

import os

from flask import Flask

from wsgigate import Dispatcher, Forwarder, Instance, Pool, Route

app = Flask(__name__)


@app.get("/")
def home() -> dict[str, str]:
    return {"answered_by": "the monolith"}


@app.get("/customers/<int:number>")
def customer(number: int) -> dict[str, object]:
    return {"answered_by": "the monolith", "customer": number}


@app.get("/products")
def products() -> dict[str, str]:
    """Not reached any more: the new service answers. Delete it once it is not needed."""
    return {"answered_by": "the monolith"}


PRODUCT_SERVICE = os.environ.get("PRODUCT_SERVICE_URL", "http://127.0.0.1:3002")

# /products and everything below it is forwarded; what no route matches falls through to the Flask
# app in this process, without another hop. The next path to move is the next line.
app.wsgi_app = Dispatcher(
    [Route("/products", Forwarder(Pool("product-service", [Instance(PRODUCT_SERVICE)])))],
    fallback=app.wsgi_app,
)
