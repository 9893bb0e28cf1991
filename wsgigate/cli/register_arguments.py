"""What the command register takes."""

from __future__ import annotations

import argparse
from typing import Any

from wsgigate.cli import numbers

__all__ = ["ABOUT", "END", "add"]

ABOUT = """\
Run a program, in any language, and keep it registered at a registry while it runs: STARTING until
its port takes connections, then UP, DRAINING for a while after SIGTERM, and gone at its end.
Signals are passed on, and the exit code is the program's. REGISTRY_TOKEN is the token for it."""

END = """\
examples:

  wsgigate register --service users --port 3001 -- node users.js
  wsgigate register --service users --port 3001 --health-check-path /health --zone a \\
      --meta team=shop -- gunicorn --bind 0.0.0.0:3001 users:app
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add them to *parser*."""

    def text(name: str, about: str, metavar: str = "NAME", default: str | None = None) -> None:
        parser.add_argument(name, metavar=metavar, help=about, default=default)

    def several(name: str, about: str, metavar: str) -> None:
        parser.add_argument(name, metavar=metavar, help=about, action="append", default=[])

    def number(name: str, about: str, metavar: str, **options: Any) -> None:
        parser.add_argument(name, metavar=metavar, help=about, **options)

    parser.add_argument("--service", metavar="NAME", required=True, help="which service it is")
    number("--port", "where others reach it", "PORT", type=numbers.port, required=True)
    text("--host", "the name or address of it (default: this machine's, as the registry sees it)")
    several("--registry", "where the registry is; several are asked in turn (REGISTRY_URL)", "URL")
    text("--ca", "a file of the authorities that vouch for an https registry", "FILE")
    text("--instance-id", "tells it from its siblings (default: made of host and port)", "ID")
    text("--scheme", "http or https (default: http)", "SCHEME", "http")
    text("--health-check-path", "where it answers whether it is well", "PATH")
    number(
        "--weight",
        "its share of the traffic beside its siblings (default: 1)",
        "N",
        type=numbers.weight,
        default=1,
    )
    text("--service-version", "which release it is", "VERSION")
    text("--zone", "where it runs")
    several("--tag", "a word to find it by; may be repeated", "WORD")
    several("--meta", "what else is to be known of it; may be repeated", "NAME=VALUE")
    number(
        "--listens", "its port here, if others reach it by another one", "PORT", type=numbers.port
    )
    number(
        "--drain",
        "how long to go on after SIGTERM (default: 2s)",
        "TIME",
        type=numbers.drain,
        default="2s",
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ...")
