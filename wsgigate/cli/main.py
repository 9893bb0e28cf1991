"""What the commands are called and what they take; what they do is in the modules beside."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from wsgigate import __version__

__all__ = ["main"]

ABOUT = """\
An API gateway in front of your services: one file says which paths go to which service, and
which middlewares (rate limits, tokens, logs) stand before them."""

START = """\
a first file, gateway.toml:

  [services.orders]
  instances = ["http://127.0.0.1:8000"]

  [[routes]]
  path = "/api/orders"
  service = "orders"
  strip_prefix = true

then:

  wsgigate check gateway.toml
  wsgigate explain gateway.toml GET /api/orders/7
  wsgigate run gateway.toml
"""

RUN = """\
Serve the gateway with gunicorn, or granian, until a signal ends it. SIGHUP reads the file again:
requests under way are finished by the old workers, and a file with errors changes nothing."""

CHECK = """\
Read the file, build the gateway without starting it, and see that its store can be used here.
Every error is told, with the key it is at; the exit code is 0 when there is none, else 2."""

ROUTES = "List the routes: what they match, what stands before them, and where they lead."

EXPLAIN = """\
Tell what would become of a request, without sending one: its path as the gateway reads it, the
route that takes it, the middlewares in their order, and what the service would be asked for. The
exit code is 1 when the request would be refused: no route, a wrong method, a malformed path."""

MINT = """\
Print a signed token (JWT) for trying things out, as the gateway's authenticator would accept it."""

EXAMPLES = """\
examples:

  curl -H "Authorization: Bearer $(wsgigate token gateway.toml --sub 7)" localhost:3000/api/users/7
  wsgigate token --secret-env JWT_SECRET --claim role=admin --claim 'scopes=["read"]' --expires 5m
"""

DENY = """\
Deny tokens before they end: the authenticators of the gateway with deny_list = true refuse them
within a second. A token is read from standard input, so that no list of processes shows it."""

DENY_EXAMPLES = """\
examples:

  wsgigate deny gateway.toml < token.txt
  wsgigate deny gateway.toml --sub ann --last 1h
"""

REGISTER = """\
Run a program, in any language, and keep it registered at a registry while it runs: STARTING until
its port takes connections, then UP, DRAINING for a while after SIGTERM, and gone at its end.
Signals are passed on, and the exit code is the program's. REGISTRY_TOKEN is the token for it."""

REGISTER_EXAMPLES = """\
examples:

  wsgigate register --service users --port 3001 -- node users.js
  wsgigate register --service users --port 3001 --health-check-path /health --zone a \\
      --meta team=shop -- gunicorn --bind 0.0.0.0:3001 users:app
"""

SCHEMA = "Print the JSON Schema of the file, by which editors complete and check it."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv*, the process's own unless given; return the exit code."""
    arguments = _parser().parse_args(argv)
    if os.getcwd() not in sys.path:  # apps and factories that the file names are often here
        sys.path.insert(0, os.getcwd())
    module, _, name = arguments.command.partition(":")
    command: Callable[[argparse.Namespace], int] = getattr(import_module(module), name)
    try:
        code = command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has read enough; what is left must not be complained about at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wsgigate",
        description=ABOUT,
        epilog=START,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"wsgigate {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: str, about: str, epilog: str = "") -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=about.split(". ")[0].split(": ")[0].rstrip(".").replace("\n", " "),
            description=about,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(command=f"wsgigate.cli.{function}")
        return made

    run = command("run", "commands:run", RUN)
    _file(run)
    run.add_argument("--bind", metavar="HOST:PORT", help="where to listen, instead of gateway.bind")
    run.add_argument("--workers", type=_count, metavar="N", help="how many processes serve")
    run.add_argument(
        "--threads", type=_count, metavar="N", help="how many requests a process serves at a time"
    )
    run.add_argument(
        "--server", choices=("gunicorn", "granian"), default="gunicorn", help="what serves"
    )
    run.add_argument(
        "--reload", action="store_true", help="restart when the file or code changes; to develop"
    )
    _file(command("check", "commands:check", CHECK))
    _file(command("routes", "commands:routes", ROUTES))

    explain = command("explain", "explain:explain", EXPLAIN)
    _file(explain)
    explain.add_argument("method", metavar="METHOD", help="GET, POST, ...")
    explain.add_argument("url", metavar="URL", help="/path?query, or http://host/path?query")

    token = command("token", "token:token", MINT, EXAMPLES)
    token.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="the gateway's file: the token is one for its first authenticator with a secret",
    )
    token.add_argument(
        "--secret-env",
        metavar="NAME",
        default="JWT_SECRET",
        help="without a FILE: the environment variable that holds the secret, for HS256 "
        "(default: JWT_SECRET)",
    )
    token.add_argument(
        "--sub", metavar="SUBJECT", default="test", help="who the token speaks of (default: test)"
    )
    token.add_argument(
        "--claim",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="another claim; the value is JSON, or else text",
    )
    token.add_argument(
        "--expires", metavar="TIME", default="1h", help="how long it is valid (default: 1h)"
    )
    deny = command("deny", "deny:deny", DENY, DENY_EXAMPLES)
    _file(deny)
    what = deny.add_mutually_exclusive_group()
    what.add_argument("--jti", metavar="ID", help="deny the token with this jti")
    what.add_argument("--sub", metavar="SUBJECT", help="deny all that this subject has until now")
    deny.add_argument(
        "--last", metavar="TIME", help="for how long the last of these tokens is good, such as 1h"
    )
    _register(command("register", "register:register", REGISTER, REGISTER_EXAMPLES))
    command("schema", "commands:schema", SCHEMA)
    return parser


def _register(parser: argparse.ArgumentParser) -> None:
    def text(name: str, about: str, metavar: str = "NAME", default: str | None = None) -> None:
        parser.add_argument(name, metavar=metavar, help=about, default=default)

    def several(name: str, about: str, metavar: str) -> None:
        parser.add_argument(name, metavar=metavar, help=about, action="append", default=[])

    def number(name: str, about: str, metavar: str, **options: Any) -> None:
        parser.add_argument(name, metavar=metavar, help=about, type=int, **options)

    parser.add_argument("--service", metavar="NAME", required=True, help="which service it is")
    number("--port", "where others reach it", "PORT", required=True)
    text("--host", "the name or address of it (default: this machine's, as the registry sees it)")
    several("--registry", "where the registry is; several are asked in turn (REGISTRY_URL)", "URL")
    text("--instance-id", "tells it from its siblings (default: made of host and port)", "ID")
    text("--scheme", "http or https (default: http)", "SCHEME", "http")
    text("--health-check-path", "where it answers whether it is well", "PATH")
    number("--weight", "its share of the traffic beside its siblings (default: 1)", "N", default=1)
    text("--service-version", "which release it is", "VERSION")
    text("--zone", "where it runs")
    several("--tag", "a word to find it by; may be repeated", "WORD")
    several("--meta", "what else is to be known of it; may be repeated", "NAME=VALUE")
    number("--listens", "its port here, if others reach it by another one", "PORT")
    text("--drain", "how long to go on after SIGTERM (default: 2s)", "TIME", "2s")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ...")


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the gateway's file, gateway.toml")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


_count.__name__ = "count of 1 or more"  # what argparse calls it in an error
