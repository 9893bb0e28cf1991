"""The settings of the site, with the gateway at their end."""

from __future__ import annotations

import os
from pathlib import Path

BASE_DIR = Path(__file__).parent

# In production from the environment alone: sessions are signed with it.
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "for this example only, never for a real site")
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "shop.example.com"]
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "wsgigate.django",
    "shop",
]
MIDDLEWARE = [
    "wsgigate.django.GateMiddleware",  # for tests: wsgi.py has the gateway already
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "urls"
WSGI_APPLICATION = "wsgi.application"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP_DATABASE", BASE_DIR / "shop.sqlite3"),
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGIN_URL = "/login/"
LOGIN_REDIRECT_URL = "/"
STATIC_URL = "/static/"
USE_TZ = True
CSRF_TRUSTED_ORIGINS = ["https://shop.example.com"]

# The share of the users whose orders the new service handles, in percent: the one line to change.
ORDERS_PERCENT = float(os.environ.get("ORDERS_PERCENT", "0"))

WSGIGATE = {
    "GATEWAY": {
        "identity": {"X-User-Id": "subject", "X-User-Name": "username"},
        "trusted_proxies": ["127.0.0.1"],  # the proxy that terminates TLS
    },
    "SERVICES": {
        "orders": {"instances": [os.environ.get("ORDERS_URL", "http://127.0.0.1:3001")]},
    },
    "ROUTES": [
        {
            "path": "/api/orders",
            "service": "orders",
            "percent": ORDERS_PERCENT,
            "split": {"key": "cookie:sessionid"},  # a user stays with one of the two
            "middleware": [{"use": "wsgigate.django:DjangoSession", "login_redirect": True}],
        },
    ],
}
