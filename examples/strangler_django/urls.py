"""The URLs of the site."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path
from shop import views

urlpatterns = [
    path("", views.home),
    path("api/orders/", views.orders),
    path("login/", LoginView.as_view(template_name="login.html")),
    path("logout/", LogoutView.as_view(next_page="/login/")),
    path("admin/", admin.site.urls),
]
