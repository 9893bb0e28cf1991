"""The orders of the site."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class Order(models.Model):
    """What a user has ordered."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    product = models.CharField(max_length=100)
    made = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.product} for {self.user}"
