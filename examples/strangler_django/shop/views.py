"""The home page, and the API that moves to the new service."""

from __future__ import annotations

import json

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods

from shop.models import Order


@login_required
def home(request: HttpRequest) -> HttpResponse:
    return render(request, "home.html")


@login_required
@require_http_methods(["GET", "POST"])
def orders(request: HttpRequest) -> JsonResponse:
    """Return the orders of the user, or make one."""
    if request.method == "POST":
        Order.objects.create(user=request.user, product=json.loads(request.body)["product"])
    mine = Order.objects.filter(user=request.user).order_by("pk")
    return JsonResponse(
        {
            "answered_by": "the site",
            "user": request.user.username,
            "orders": list(mine.values_list("product", flat=True)),
        },
        status=201 if request.method == "POST" else 200,
    )
