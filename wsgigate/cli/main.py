"""What the commands are called and what they take; what they do is in the modules beside."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from wsgigate import __version__
from wsgigate.cli import numbers
from wsgigate.config.errors import ConfigError
from wsgigate.runtime.log_level import LEVELS

__all__ = [
    "REGISTER_ABOUT",
    "REGISTER_EXAMPLES",
    "SERVERS",
    "add_register_arguments",
    "failed",
    "main",
    "server",
]


# How a command fails: a line on standard error, and its exit code.


def failed(why: Exception | str, code: int = 2) -> int:
    """Tell *why*, and return *code*; what is wrong with a file already names the file."""
    print(why if isinstance(why, ConfigError) else f"wsgigate: {why}", file=sys.stderr)
    return code


# What the command register takes.

REGISTER_ABOUT = """\
Run a program, in any language, and keep it registered at a registry while it runs: STARTING until
its port takes connections, then UP, DRAINING for a while after SIGTERM, and gone at its end.
Signals are passed on, and the exit code is the program's. REGISTRY_TOKEN is the token for it."""

REGISTER_EXAMPLES = """\
examples:

  wsgigate register --service users --port 3001 -- node users.js
  wsgigate register --service users --port 3001 --health-check-path /health --zone a \\
      --meta team=shop -- gunicorn --bind 0.0.0.0:3001 users:app
"""


def add_register_arguments(parser: argparse.ArgumentParser) -> None:
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


# The servers that can be had to serve a gateway.

SERVERS = {"gunicorn": "server", "granian": "granian"}
"""The extra that installs each, by its name; the first is usual."""


def server(name: str, command: str) -> ModuleType:
    """Return what has the server *name* serve a gateway.

    :param command: The command that needs it.
    :raises ValueError: It is not installed; says what to do.
    """
    try:
        return import_module(f"wsgigate.servers.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name:
            raise
        raise ValueError(
            f'{command} needs {name}: pip install "wsgigate[{SERVERS[name]}]"'
        ) from None


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
Every error is reported with its key; the exit code is 0 when there is none, else 2. A store that
does not answer at the moment is a warning, as the gateway starts without it; a wrong password is
an error."""

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

MAINTENANCE = """\
Take the gateway, a service or a route out of service, and back. All workers answer its requests
with 503 within a second; the gateway's own endpoints go on. The file needs [maintenance]."""

MAINTENANCE_EXAMPLES = """\
examples:

  wsgigate maintenance gateway.toml on --for 30m --message "Back at noon."
  wsgigate maintenance gateway.toml off
"""

REGISTRY = """\
Serve the registry alone, until a signal ends it: services register with it, send heartbeats and
leave; gateways and others ask it who is there. Whoever registers presents the token that the
environment variable REGISTRY_TOKEN holds. It runs under gunicorn or granian, its state is in
LMDB."""

REGISTRY_EXAMPLES = """\
examples:

  REGISTRY_TOKEN=$(openssl rand -hex 32) wsgigate registry
  wsgigate registry --open
  wsgigate registry --door eureka --door consul
  wsgigate registry --server granian      (for thousands of instances)
  wsgigate registry --bind 10.0.0.4:3004 --allow 10.0.0.0/8 --token users=USERS_TOKEN

All that there is to set is in the [registry] table of a gateway's file, for "wsgigate run".
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
    run.add_argument(
        "--workers", type=numbers.workers, metavar="N", help="how many processes serve (1 to 1024)"
    )
    run.add_argument(
        "--threads",
        type=numbers.threads,
        metavar="N",
        help="how many requests a process serves at a time (1 to 4096)",
    )
    _server(run)
    _log_level(run)
    run.add_argument(
        "--reload", action="store_true", help="restart when the file or code changes; to develop"
    )
    check = command("check", "commands:check", CHECK)
    _file(check)
    _server(check)
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
    deny = command("deny", "operations:deny", DENY, DENY_EXAMPLES)
    _file(deny)
    what = deny.add_mutually_exclusive_group()
    what.add_argument("--jti", metavar="ID", help="deny the token with this jti")
    what.add_argument("--sub", metavar="SUBJECT", help="deny all that this subject has until now")
    deny.add_argument(
        "--last", metavar="TIME", help="for how long the last of these tokens is good, such as 1h"
    )
    switch = command("maintenance", "operations:maintenance", MAINTENANCE, MAINTENANCE_EXAMPLES)
    _file(switch)
    switch.add_argument("what", choices=("on", "off", "status"), help="what to do")
    which = switch.add_mutually_exclusive_group()
    which.add_argument("--service", metavar="NAME", help="this service alone")
    which.add_argument("--route", metavar="NAME", help="this route alone")
    switch.add_argument(
        "--for", dest="lasts", metavar="TIME", help="when it ends by itself, such as 30m"
    )
    switch.add_argument(
        "--message", metavar="TEXT", default="", help="what clients are told, one sentence"
    )
    add_register_arguments(
        command("register", "register:register", REGISTER_ABOUT, REGISTER_EXAMPLES)
    )
    _registry(command("registry", "registry:registry", REGISTRY, REGISTRY_EXAMPLES))
    command("schema", "commands:schema", SCHEMA)
    return parser


def _server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", choices=tuple(SERVERS), default="gunicorn", help="what serves")


def _log_level(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log-level",
        choices=LEVELS,
        help="the least important records that are logged (default: info, with every change of "
        "state)",
    )


def _registry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bind",
        metavar="HOST:PORT",
        default="127.0.0.1:3004",
        help="where to listen (default: 127.0.0.1:3004)",
    )
    _server(parser)
    _log_level(parser)
    parser.add_argument(
        "--workers", type=numbers.workers, metavar="N", help="how many processes serve (1 to 1024)"
    )
    parser.add_argument(
        "--threads",
        type=numbers.threads,
        default=16,
        metavar="N",
        help="how many requests a process serves at a time, of which a quarter may wait for a "
        "change (default: 16)",
    )
    parser.add_argument(
        "--store", metavar="URL", default="lmdb:", help="where its state is (default: lmdb:)"
    )
    parser.add_argument(
        "--open", action="store_true", help="anybody may register; on loopback only"
    )
    parser.add_argument(
        "--closed-reads", action="store_true", help="to ask who is there takes a token as well"
    )
    parser.add_argument(
        "--token",
        metavar="SERVICE=NAME",
        action="append",
        default=[],
        help="the environment variable NAME holds a token by which SERVICE registers itself alone",
    )
    parser.add_argument(
        "--door",
        metavar="NAME",
        action="append",
        choices=["eureka", "consul"],
        default=[],
        help="whose clients may use it too, unchanged: eureka at /eureka, consul at /v1; may be "
        "repeated",
    )
    parser.add_argument(
        "--query-tokens",
        action="store_true",
        help="Consul's clients may present the token as ?token= in the query, too",
    )
    parser.add_argument(
        "--allow",
        metavar="NETWORK",
        action="append",
        default=[],
        help="where instances may be, instead of loopback and private addresses; may be repeated",
    )


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the gateway's file, gateway.toml")
