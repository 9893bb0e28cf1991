"""The product service: the shop's public catalogue.

Run it alone with ``gunicorn --bind 127.0.0.1:3002 products:app``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flask import request
from service import create_app, fail

__all__ = ["app"]


@dataclass(frozen=True)
class Product:
    """A product. The price is in cents: money is never a float."""

    id: int
    name: str
    category: str
    priceCents: int


# Never modified after this assignment, so threads share it without a lock.
CATALOGUE = {
    product.id: product
    for product in (
        Product(1, "Espresso Machine", "kitchen", 24900),
        Product(2, "Coffee Grinder", "kitchen", 8900),
        Product(3, "Cast Iron Pan", "kitchen", 3950),
        Product(4, "Desk Lamp", "office", 4500),
        Product(5, "Standing Desk", "office", 39900),
        Product(6, "Notebook, dotted", "office", 1290),
        Product(7, "Coffee Table", "living", 17900),
        Product(8, "Wool Blanket", "living", 6900),
    )
}

app = create_app("product-service")


def listing(products: list[Product]) -> dict[str, Any]:
    return {
        "success": True,
        "products": [asdict(product) for product in products],
        "count": len(products),
    }


@app.get("/")
@app.get("/products")
def list_products() -> dict[str, Any]:
    """List the catalogue: all of it, ``?category=office``, or ``?ids=1,7``."""
    products = list(CATALOGUE.values())
    category = request.args.get("category")
    if category is not None:
        products = [product for product in products if product.category == category]
    ids = request.args.get("ids")
    if ids is not None:
        wanted = set(ids.split(","))
        products = [product for product in products if str(product.id) in wanted]
    return listing(products)


@app.get("/<int:product_id>")
@app.get("/products/<int:product_id>")
def show_product(product_id: int) -> dict[str, Any]:
    product = CATALOGUE.get(product_id) or fail(404, "Product not found!")
    return {"success": True, "product": asdict(product)}


@app.get("/search")
def search() -> dict[str, Any]:
    """List the products whose name or category has every word of ``?q=``."""
    words = request.args.get("q", "").casefold().split()
    if not words:
        fail(400, "q is required!")
    return listing(
        [
            product
            for product in CATALOGUE.values()
            if all(word in f"{product.name} {product.category}".casefold() for word in words)
        ]
    )


@app.get("/categories")
def categories() -> dict[str, Any]:
    names = sorted({product.category for product in CATALOGUE.values()})
    return {"success": True, "categories": names, "count": len(names)}
