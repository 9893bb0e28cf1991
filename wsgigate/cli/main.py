"""The commands of the command line and their arguments.

The function of a command is in another module, which is imported only when the command runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from wsgigate import __version__
from wsgigate.config.errors import ConfigError
from wsgigate.runtime.logs import LEVELS
from wsgigate.server_check import MOST_THREADS, MOST_WORKERS
from wsgigate.units import parse_duration

__all__ = [
    "KEYS",
    "REGISTER_ABOUT",
    "REGISTER_EXAMPLES",
    "SERVERS",
    "add_keys_arguments",
    "add_register_arguments",
    "failed",
    "main",
    "server",
]


# Errors: a line on standard error, and the exit code.


def failed(why: Exception | str, code: int = 2) -> int:
    """Print *why* on standard error and return *code*; a ConfigError names its file itself."""
    print(why if isinstance(why, ConfigError) else f"wsgigate: {why}", file=sys.stderr)
    return code


# Argument types: numbers and durations within bounds.

_MOST_SECONDS_TO_DRAIN = 300


def _whole(least: int, most: int, reason: str = "") -> Callable[[str], int]:
    """Return a parser of whole numbers from *least* to *most*.

    :param reason: The reason for the upper bound, for the error.
    """
    expected = f"expected a whole number from {least} to {most}{reason and f' ({reason})'}"

    def read(text: str) -> int:
        # int() also accepts "1_000" and digits of other scripts
        digits = text.removeprefix("-")
        number = int(text) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{expected}, got {text[:40]!r}")
        return number

    return read


def _drain(text: str) -> str:
    """Return *text* if it is a duration of 0 to 300 seconds."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if seconds > _MOST_SECONDS_TO_DRAIN:
        raise argparse.ArgumentTypeError(f"expected at most 5 minutes, got {text!r}")
    return text


_workers = _whole(1, MOST_WORKERS, "each is a process of tens of MiB")
_threads = _whole(1, MOST_THREADS, "per process")
_port = _whole(1, 65535)
_weight = _whole(0, 65535)


# The command register.

REGISTER_ABOUT = """\
Run a program, in any language, and keep it registered at a registry while it runs: STARTING until
its port accepts connections, then UP, DRAINING for a while after SIGTERM, and removed when it
exits. Signals are forwarded to the program, and the exit code is the program's. The environment
variable REGISTRY_TOKEN holds the token."""

REGISTER_EXAMPLES = """\
examples:

  wsgigate register --service users --port 3001 -- node users.js
  wsgigate register --service users --port 3001 --health-check-path /health --zone a \\
      --meta team=shop -- gunicorn --bind 0.0.0.0:3001 users:app
"""


def add_register_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command register to *parser*."""

    def text(name: str, about: str, metavar: str = "NAME", default: str | None = None) -> None:
        parser.add_argument(name, metavar=metavar, help=about, default=default)

    def several(name: str, about: str, metavar: str) -> None:
        parser.add_argument(name, metavar=metavar, help=about, action="append", default=[])

    def number(name: str, about: str, metavar: str, **options: Any) -> None:
        parser.add_argument(name, metavar=metavar, help=about, **options)

    parser.add_argument("--service", metavar="NAME", required=True, help="the service's name")
    number("--port", "the port at which others reach it", "PORT", type=_port, required=True)
    text(
        "--host",
        "its host name or address (default: this machine's address, as the registry sees it)",
    )
    several(
        "--registry",
        "the registry's URL; may be repeated, several are tried in order (default: REGISTRY_URL)",
        "URL",
    )
    text("--ca", "a file of CA certificates for an https registry", "FILE")
    text("--instance-id", "the instance's id (default: derived from host and port)", "ID")
    text("--scheme", "http or https (default: http)", "SCHEME", "http")
    text("--health-check-path", "the path of its health check", "PATH")
    number(
        "--weight",
        "its share of the traffic relative to the other instances (default: 1)",
        "N",
        type=_weight,
        default=1,
    )
    text("--service-version", "the version of the program", "VERSION")
    text("--zone", "the availability zone it runs in")
    several("--tag", "a tag, by which clients select instances; may be repeated", "WORD")
    several("--meta", "metadata of the instance; may be repeated", "NAME=VALUE")
    number(
        "--listens",
        "the port it listens on here, if others reach it by another one",
        "PORT",
        type=_port,
    )
    number(
        "--drain",
        "how long to keep running after SIGTERM (default: 2s)",
        "TIME",
        type=_drain,
        default="2s",
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ...")


# The servers that can serve a gateway.

SERVERS = {"gunicorn": "server", "granian": "granian"}
"""The extra that installs each server; the first one is the default."""


def server(name: str, command: str) -> ModuleType:
    """Return the module that serves a gateway with the server *name*.

    :param command: The command that requires it, for the error.
    :raises ValueError: The server is not installed; the message says how to install it.
    """
    try:
        return import_module(f"wsgigate.servers.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name:
            raise
        raise ValueError(
            f'{command} requires {name}: pip install "wsgigate[{SERVERS[name]}]"'
        ) from None


ABOUT = """\
An API gateway in front of your services: one file defines which paths are routed to which service,
and which middlewares (rate limiting, authentication, logging) are applied."""

START = """\
a minimal gateway.toml:

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
Serve the gateway with gunicorn, or granian, until a signal stops it. SIGHUP reloads the file: the
old workers finish the requests in flight; a file with errors is rejected without any effect."""

CHECK = """\
Check the file: build the gateway without starting it, and check that its store can be used here.
Every error is reported with its key; the exit code is 0 without errors, else 2. A store that is
unavailable at the moment is a warning, as the gateway starts without it; a wrong password is an
error. An issuer of tokens whose keys cannot be fetched is a warning, too."""

ROUTES = "List the routes: what they match, their middlewares, and their services."

EXPLAIN = """\
Show how a request would be handled, without sending one: its path as the gateway parses it, the
route that matches, the middlewares in order, the scopes, roles, groups and claims that the caller
needs, and the request to the service. The exit code is 1 if the request would be rejected: no
route, a wrong method, a malformed path, no rule that allows it."""

MINT = """\
Print a signed token (JWT) for testing, as the gateway's authenticator accepts it."""

EXAMPLES = """\
examples:

  curl -H "Authorization: Bearer $(wsgigate token gateway.toml --sub 7)" localhost:3000/api/users/7
  wsgigate token --secret-env JWT_SECRET --claim role=admin --claim 'scopes=["read"]' --expires 5m
"""

DENY = """\
Revoke tokens before they expire: the gateway's authenticators with deny_list = true reject them
within a second. The token is read from standard input, so that process listings do not show it."""

DENY_EXAMPLES = """\
examples:

  wsgigate deny gateway.toml < token.txt
  wsgigate deny gateway.toml --sub ann --last 1h
"""

KEYS = """\
Create, list, revoke and rotate the API keys that the gateway's middlewares with use = "api-key"
accept. A change applies within a second, without a reload. A key is printed once: only its SHA-256
is kept."""

KEYS_EXAMPLES = """\
examples:

  wsgigate keys create gateway.toml --owner acme --plan gold --scope orders:read --expires 365d
  wsgigate keys list gateway.toml --owner acme
  wsgigate keys rotate gateway.toml 5f0c9d1e7a3b2c48 --overlap 7d
  wsgigate keys revoke gateway.toml 5f0c9d1e7a3b2c48
"""

KEYS_ACTIONS = {
    "create": "Create a key, and print it; it cannot be shown again.",
    "list": "List the keys, without the keys themselves.",
    "revoke": "Revoke a key; requests with it get a 401.",
    "rotate": "Replace a key by a new one and print that; the old one stays valid for a while.",
}

USER_LINE = """\
Make a line for a users_file of HTTP Basic: the user, and the argon2 hash of a password. The command
asks for the password, or reads it from the first line of standard input."""

USER_LINE_EXAMPLES = """\
examples:

  wsgigate password ann >> users
  openssl rand -base64 24 | tee password.txt | wsgigate password robot >> users
"""

MAINTENANCE = """\
Switch maintenance mode of the gateway, a service or a route on or off. Within a second all workers
answer its requests with 503; the gateway's own endpoints stay available. The file must have a
[maintenance] table."""

MAINTENANCE_EXAMPLES = """\
examples:

  wsgigate maintenance gateway.toml on --for 30m --message "Back at noon."
  wsgigate maintenance gateway.toml off
"""

DRAIN = """\
Drain an instance: within a second no worker sends it new requests, except those of its sticky
sessions. Requests in flight finish. The change survives restarts. The file must have an [admin]
table."""

DRAIN_EXAMPLES = """\
examples:

  wsgigate drain gateway.toml orders 10.0.0.4:8000
  wsgigate drain gateway.toml orders 10.0.0.4:8000 --eject --for 10m
"""

UNDRAIN = """\
Let a drained or ejected instance be active again, with its configured weight. That also ends its
automatic ejections."""

BREAKER = """\
Force the circuit breaker of a service open or closed, let it decide by itself again, or reset it,
in all workers. One that is forced closed passes all requests and counts their failures."""

BREAKER_EXAMPLES = """\
examples:

  wsgigate breaker gateway.toml open orders --for 30m
  wsgigate breaker gateway.toml auto orders
"""

LIMITS = """\
Show what a caller has left under a limit, or give it the full quota again."""

LIMITS_EXAMPLES = """\
examples:

  wsgigate limits gateway.toml show default 192.0.2.1
  wsgigate limits gateway.toml clear default 192.0.2.1
"""

REGISTRY = """\
Serve the service registry without a gateway, until a signal stops it: services register, send
heartbeats and deregister; gateways and other clients look up instances. Registration requires the
token in the environment variable REGISTRY_TOKEN. The registry runs under gunicorn or granian, its
state is in LMDB."""

REGISTRY_EXAMPLES = """\
examples:

  REGISTRY_TOKEN=$(openssl rand -hex 32) wsgigate registry
  wsgigate registry --open
  wsgigate registry --door eureka --door consul
  wsgigate registry --server granian      (for thousands of instances)
  wsgigate registry --bind 10.0.0.4:3004 --allow 10.0.0.0/8 --token users=USERS_TOKEN

For all other settings use the [registry] table of a gateway's file, with "wsgigate run".
"""

STATUS = """\
Print the overview of a running gateway. It is JSON unless it is printed on a terminal. The exit
code is 0 if all is well, 1 with a warning, and 2 if something fails or the gateway does not answer.

With a FILE the gateway of this machine is asked, with the token of the file. With a URL the token
is in the environment variable WSGIGATE_ADMIN_TOKEN."""

STATUS_EXAMPLES = """\
examples:
  wsgigate status gateway.toml
  WSGIGATE_ADMIN_TOKEN=... wsgigate status https://gate.example/_gateway | jq .problems"""

SCHEMA = "Print the JSON Schema of the file, for completion and validation in editors."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* and return the exit code. Default: the process's arguments."""
    arguments = _parser().parse_args(argv)
    if (
        os.getcwd() not in sys.path
    ):  # apps and factories that the file names are often in the current folder
        sys.path.insert(0, os.getcwd())
    module, _, name = arguments.command.partition(":")
    command: Callable[[argparse.Namespace], int] = getattr(import_module(module), name)
    try:
        code = command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe; Python must not report the unwritten rest at exit.
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
    run.add_argument(
        "--bind", metavar="HOST:PORT", help="the address to listen on, instead of gateway.bind"
    )
    run.add_argument("--workers", type=_workers, metavar="N", help="worker processes (1 to 1024)")
    run.add_argument(
        "--threads",
        type=_threads,
        metavar="N",
        help="threads per worker process: requests served at a time (1 to 4096)",
    )
    _server(run)
    _log_level(run)
    run.add_argument(
        "--reload",
        action="store_true",
        help="for development: restart when the file or code changes",
    )
    check = command("check", "commands:check", CHECK)
    _file(check)
    _server(check)
    check.add_argument(
        "--offline",
        action="store_true",
        help="send nothing to other machines: no keys are fetched, no networked store is asked",
    )
    _file(command("routes", "commands:routes", ROUTES))

    explain = command("explain", "commands:explain", EXPLAIN)
    _file(explain)
    explain.add_argument("method", metavar="METHOD", help="GET, POST, ...")
    explain.add_argument("url", metavar="URL", help="/path?query, or http://host/path?query")

    token = command("token", "commands:token", MINT, EXAMPLES)
    token.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="the gateway's file: the token is for its first authenticator with a secret",
    )
    token.add_argument(
        "--secret-env",
        metavar="NAME",
        default="JWT_SECRET",
        help="without a FILE: the environment variable that holds the secret, for HS256 "
        "(default: JWT_SECRET)",
    )
    token.add_argument(
        "--sub", metavar="SUBJECT", default="test", help="the token's subject (default: test)"
    )
    token.add_argument(
        "--claim",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an additional claim; the value is JSON, else text; may be repeated",
    )
    token.add_argument(
        "--expires", metavar="TIME", default="1h", help="the token's lifetime (default: 1h)"
    )
    deny = command("deny", "operations:deny", DENY, DENY_EXAMPLES)
    _file(deny)
    what = deny.add_mutually_exclusive_group()
    what.add_argument("--jti", metavar="ID", help="deny the token with this jti")
    what.add_argument("--sub", metavar="SUBJECT", help="deny all tokens that this subject has now")
    deny.add_argument(
        "--last", metavar="TIME", help="the time until the last of these tokens expires, such as 1h"
    )
    add_keys_arguments(command("keys", "api_keys:keys", KEYS, KEYS_EXAMPLES))
    password = command("password", "password:password", USER_LINE, USER_LINE_EXAMPLES)
    password.add_argument("user", metavar="USER", help="the name of the user")
    status = command("status", "status:status", STATUS, STATUS_EXAMPLES)
    status.add_argument(
        "gateway", metavar="FILE|URL", help="the gateway's file, or its address and admin prefix"
    )
    status.add_argument("--json", action="store_true", help="print JSON on a terminal as well")
    status.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        default=5.0,
        help="the time to wait (default: 5)",
    )
    switch = command("maintenance", "operations:maintenance", MAINTENANCE, MAINTENANCE_EXAMPLES)
    _file(switch)
    switch.add_argument("what", choices=("on", "off", "status"), help="what to do")
    which = switch.add_mutually_exclusive_group()
    which.add_argument("--service", metavar="NAME", help="this service alone")
    which.add_argument("--route", metavar="NAME", help="this route alone")
    switch.add_argument(
        "--for",
        dest="lasts",
        metavar="TIME",
        help="how long it lasts, such as 30m (default: until switched off)",
    )
    switch.add_argument("--message", metavar="TEXT", default="", help="a sentence for clients")
    _changes(command)
    add_register_arguments(
        command("register", "register:register", REGISTER_ABOUT, REGISTER_EXAMPLES)
    )
    _registry(command("registry", "registry:registry", REGISTRY, REGISTRY_EXAMPLES))
    command("schema", "commands:schema", SCHEMA)
    return parser


def _changes(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that change a running gateway."""

    def ends(parser: argparse.ArgumentParser, about: str) -> None:
        parser.add_argument("--for", dest="lasts", metavar="TIME", help=about)

    drain = command("drain", "changes:drain", DRAIN, DRAIN_EXAMPLES)
    undrain = command("undrain", "changes:undrain", UNDRAIN)
    for each in (drain, undrain):
        _file(each)
        each.add_argument("service", metavar="SERVICE", help="the service")
        each.add_argument(
            "address", metavar="ADDRESS", help="HOST:PORT of the instance, or its URL"
        )
    drain.add_argument("--eject", action="store_true", help="without its sticky sessions, too")
    ends(drain, "how long, such as 10m (default: until undrain)")
    breaker = command("breaker", "changes:breaker", BREAKER, BREAKER_EXAMPLES)
    _file(breaker)
    breaker.add_argument(
        "action", choices=("open", "close", "auto", "reset"), help="what to do with it"
    )
    breaker.add_argument("service", metavar="SERVICE", help="the service")
    ends(breaker, "how long, such as 30m (default: until auto)")
    limits = command("limits", "changes:limits", LIMITS, LIMITS_EXAMPLES)
    _file(limits)
    limits.add_argument("action", choices=("show", "clear"), help="what to do")
    limits.add_argument("policy", metavar="POLICY", help="the name of the limit")
    limits.add_argument("key", metavar="KEY", help="what it counts by, such as an address")


def add_keys_arguments(parser: argparse.ArgumentParser, *, file: bool = True) -> None:
    """Add the arguments of the command keys to *parser*.

    :param file: Whether they include the gateway's file.
    """
    actions = parser.add_subparsers(metavar="ACTION", required=True, dest="action")
    for name, about in KEYS_ACTIONS.items():
        action = actions.add_parser(name, help=about, description=about)
        if file:
            _file(action)
        if name in ("revoke", "rotate"):
            action.add_argument("id", metavar="ID", help="the id of the key, as list prints it")
        if name in ("create", "list"):
            about = "the account it belongs to" if name == "create" else "only keys of this account"
            action.add_argument("--owner", metavar="NAME", required=name == "create", help=about)
        if name == "create":
            action.add_argument(
                "--plan", metavar="NAME", default="", help="the plan, which limiters select by"
            )
            action.add_argument(
                "--scope",
                metavar="SCOPE",
                action="append",
                default=[],
                help="a scope that the key has; may be repeated",
            )
            action.add_argument(
                "--name", metavar="TEXT", default="", help="a free description of the key"
            )
            action.add_argument(
                "--expires",
                metavar="TIME",
                help="the time after which it expires, such as 365d (default: never)",
            )
        if name == "rotate":
            action.add_argument(
                "--overlap",
                metavar="TIME",
                help="the time for which the old key stays valid, and older ones at most "
                "(default: 1d, and older ones as long as earlier rotations said)",
            )
        action.add_argument("--json", action="store_true", help="print JSON")


def _server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server",
        choices=tuple(SERVERS),
        default="gunicorn",
        help="the server to use (default: gunicorn)",
    )


def _log_level(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log-level",
        choices=LEVELS,
        help="the minimum level of log records (default: info, which includes every change of "
        "state)",
    )


def _registry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bind",
        metavar="HOST:PORT",
        default="127.0.0.1:3004",
        help="the address to listen on (default: 127.0.0.1:3004)",
    )
    _server(parser)
    _log_level(parser)
    parser.add_argument(
        "--workers", type=_workers, metavar="N", help="worker processes (1 to 1024)"
    )
    parser.add_argument(
        "--threads",
        type=_threads,
        default=16,
        metavar="N",
        help="requests a process serves at a time; a quarter of them may be long polls "
        "(default: 16)",
    )
    parser.add_argument(
        "--store", metavar="URL", default="lmdb:", help="the store of its state (default: lmdb:)"
    )
    parser.add_argument(
        "--open", action="store_true", help="allow registration without a token; on loopback only"
    )
    parser.add_argument(
        "--closed-reads", action="store_true", help="require a token for lookups as well"
    )
    parser.add_argument(
        "--token",
        metavar="SERVICE=NAME",
        action="append",
        default=[],
        help="the environment variable NAME holds a token that registers SERVICE only; may be "
        "repeated",
    )
    parser.add_argument(
        "--door",
        metavar="NAME",
        action="append",
        choices=["eureka", "consul"],
        default=[],
        help="a compatibility API for unmodified clients: eureka at /eureka, consul at /v1; may be "
        "repeated",
    )
    parser.add_argument(
        "--query-tokens",
        action="store_true",
        help="accept the token of Consul clients in the query (?token=) too",
    )
    parser.add_argument(
        "--allow",
        metavar="NETWORK",
        action="append",
        default=[],
        help="a network that instances may be in, instead of loopback and private addresses; may "
        "be repeated",
    )


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the gateway's file, such as gateway.toml")
