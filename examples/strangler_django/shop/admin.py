"""The admin of the orders."""

from __future__ import annotations

from django.contrib import admin

from shop.models import Order


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    """The list of orders."""

    list_display = ("product", "user", "made")
