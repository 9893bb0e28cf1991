"""``manage.py gateway_routes``: list the routes of the setting ``WSGIGATE``."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from wsgigate.cli.commands import route_rows, routes_table
from wsgigate.django.settings import checked_gateway, read_settings

__all__ = ["Command"]

_DJANGO = "Django"


class Command(BaseCommand):  # type: ignore[misc]
    """Print which requests the gateway forwards, and which Django serves."""

    help = "List the routes of the setting WSGIGATE, as `wsgigate routes` does for a file."
    requires_system_checks: list[str] = []  # noqa: RUF012 - the command reports the errors itself

    def add_arguments(self, parser: Any) -> None:
        """Add the options of the command."""
        parser.add_argument("--json", action="store_true", help="print the routes as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the routes.

        :raises CommandError: The setting is invalid.
        """
        read = read_settings()
        built, errors, _ = checked_gateway(read)
        if errors:
            listed = "\n".join(f"{where}: {text}" for where, text in errors)
            raise CommandError(listed, returncode=2)
        if built is None:
            text = "WSGIGATE has no routes: Django serves every request"
            self.stdout.write("[]" if options["json"] else text)
            return
        built.gateway.close()
        if options["json"]:
            rows = [row._asdict() for row in route_rows(built, fallback=_DJANGO)]
            self.stdout.write(json.dumps(rows, indent=2))
            return
        for line in routes_table(built, fallback=_DJANGO):
            self.stdout.write(line)
