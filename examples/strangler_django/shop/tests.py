"""The tests of the site, with the gateway in them."""

from __future__ import annotations

from django.contrib.auth import get_user_model
from django.test import TestCase


class Orders(TestCase):
    """The API of orders, at the site as long as ORDERS_PERCENT is 0."""

    def setUp(self) -> None:
        self.client.force_login(get_user_model().objects.create_user("ada"))

    def test_an_order_is_listed(self) -> None:
        made = self.client.post(
            "/api/orders/", {"product": "bread"}, content_type="application/json"
        )
        assert made.status_code == 201
        assert self.client.get("/api/orders/").json()["orders"] == ["bread"]

    def test_the_anonymous_are_sent_to_the_login(self) -> None:
        self.client.logout()
        answer = self.client.get("/api/orders/", headers={"Accept": "text/html"})
        assert answer.status_code == 302
