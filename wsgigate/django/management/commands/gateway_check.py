"""``manage.py gateway_check``: report all errors and warnings of the setting ``WSGIGATE``."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from wsgigate.django.settings import checked_gateway, read_settings

__all__ = ["Command"]


class Command(BaseCommand):  # type: ignore[misc]
    """Check the gateway as it is built to serve, with its store, its files and its issuers."""

    help = (
        "Check the setting WSGIGATE: its keys, middlewares, services and routes, the store, files, "
        "and the keys of issuers. The exit code is 0 without errors, 2 with errors."
    )
    requires_system_checks: list[str] = []  # noqa: RUF012 - they would report the same errors

    def add_arguments(self, parser: Any) -> None:
        """Add the options of the command."""
        parser.add_argument(
            "--offline", action="store_true", help="send nothing to any other machine"
        )
        parser.add_argument("--json", action="store_true", help="print the findings as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the findings.

        :raises CommandError: There are errors.
        """
        read = read_settings()
        built, errors, warnings = checked_gateway(read, asks=True, offline=options["offline"])
        services, routes = 0, 0
        if built is not None:
            services, routes = len(built.gateway.pools), len(built.entries)
            built.gateway.close()
        if options["json"]:
            report = {
                "ok": not errors,
                "middlewares": len(read.middleware),
                "services": services,
                "routes": routes,
                "errors": _found(errors),
                "warnings": _found(warnings),
            }
            self.stdout.write(json.dumps(report, indent=2))
        else:
            for where, text in warnings:
                self.stderr.write(self.style.WARNING(f"warning: {where}: {text}"))
            for where, text in errors:
                self.stderr.write(self.style.ERROR(f"error: {where}: {text}"))
            if not errors:
                counts = {"middleware": len(read.middleware), "service": services, "route": routes}
                listed = ", ".join(f"{n} {what}{'s' * (n != 1)}" for what, n in counts.items())
                self.stdout.write(self.style.SUCCESS(f"ok: {listed}"))
        if errors:
            count = f"{len(errors)} error{'s' * (len(errors) != 1)}"
            raise CommandError(f"WSGIGATE has {count}", returncode=2)


def _found(findings: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"where": where, "text": text} for where, text in findings]
