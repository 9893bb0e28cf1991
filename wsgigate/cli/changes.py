"""The commands drain, undrain, breaker and limits: they change what all workers share in the store.

They need no request to the gateway, so they work on a machine that can reach its store, also while
no worker answers.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable

from wsgigate.admin.instances import UnknownInstance, override_audited, url_of
from wsgigate.admin.limits import clear_audited, plain_key
from wsgigate.admin.operations import force_audited
from wsgigate.cli.main import failed
from wsgigate.cli.operations import shared_gateway
from wsgigate.config.build_routes import policy_name
from wsgigate.config.errors import ConfigError, shown
from wsgigate.config.load import load
from wsgigate.config.model import Config
from wsgigate.config.tables import suggestion
from wsgigate.coordination.circuit import Circuit
from wsgigate.coordination.overrides import ACTIVE, DRAINED, EJECTED, Overrides
from wsgigate.discovery import Instance
from wsgigate.http.limits import LimitStanding
from wsgigate.store import StoreError
from wsgigate.telemetry.audit import audited, command_line
from wsgigate.units import iso_time, parse_duration

__all__ = ["breaker", "drain", "limits", "undrain"]


def _named(name: str, known: Iterable[str], what: str) -> str:
    """Return *name* if it is one of *known*.

    :raises ValueError: It is not; the message has the nearest.
    """
    names = list(known)
    if name not in names:
        raise ValueError(f"{shown(name)} is no {what} of this gateway{suggestion(name, names)}")
    return name


def _reported(change: Callable[[], str]) -> int:
    """Carry out a command, print its result, and return its exit code."""
    try:
        print(change())
    except (ConfigError, ValueError) as error:
        return failed(error)
    except StoreError as error:
        return failed(f"unknown whether the change took effect: {error}", 1)
    return 0


def drain(arguments: argparse.Namespace) -> int:
    """Drain or eject an instance in the store of the gateway, and print what was changed."""
    state = EJECTED if arguments.eject else DRAINED
    return _reported(lambda: _set(arguments, state, arguments.lasts))


def undrain(arguments: argparse.Namespace) -> int:
    """Let an instance be active again, in the store of the gateway, and print that."""
    return _reported(lambda: _set(arguments, ACTIVE, None))


def _set(arguments: argparse.Namespace, state: str, lasts: str | None) -> str:
    config = load(arguments.file)
    if config.admin is None:
        raise ValueError(
            f"{arguments.file} has no [admin] table, so its workers do not read such changes"
        )
    seconds = None if lasts is None else parse_duration(lasts)
    with shared_gateway(config, arguments.file) as built:
        pools = built.gateway.pools
        service = _named(arguments.service, pools, "service")
        overrides = Overrides(
            built.gateway.store, pools, name=policy_name(config.gateway.name), may_log=lambda: False
        )
        overrides.look()
        url = _url(arguments.address, pools[service].instances, overrides, service, config)
        _, after = override_audited(
            overrides, service, url, state, lasts=seconds, by=command_line()
        )
    until = "" if after.automatic or after.until is None else f" until {iso_time(after.until)}"
    return f"{service} {url}: {after.state}{until}"


def _url(
    address: str,
    instances: Iterable[Instance],
    overrides: Overrides,
    service: str,
    config: Config,
) -> str:
    """Return the URL of an instance; of a discovered one, which no worker names here, the given."""
    try:
        return url_of(address, instances, overrides.of(service))
    except UnknownInstance as error:
        if config.services[service].discover is None:
            raise
        try:
            return Instance(address).url
        except ValueError:
            raise ValueError(
                f"{error}; of a discovered instance give the URL, such as http://{address}"
            ) from None


def breaker(arguments: argparse.Namespace) -> int:
    """Force a circuit breaker open or closed, release or reset it, and print its state."""
    return _reported(lambda: _force(arguments))


_FORCES = {"open": "open", "close": "closed", "auto": "auto"}


def _force(arguments: argparse.Namespace) -> str:
    config, action = load(arguments.file), arguments.action
    if arguments.lasts is not None and action not in ("open", "close"):
        raise ValueError("--for: allowed with open and close only")
    lasts = None if arguments.lasts is None else parse_duration(arguments.lasts)
    log = logging.getLogger("wsgigate.circuits")
    if not log.hasHandlers():
        log.addHandler(logging.NullHandler())  # what it has to say is printed
    with shared_gateway(config, arguments.file) as built:
        circuits = {circuit.name: circuit for circuit in built.circuits}
        circuit = circuits[_named(arguments.service, circuits, "service with a breaker")]
        if action == "reset":
            shared = _reset(circuit)
        else:
            shared = force_audited(circuit, _FORCES[action], lasts=lasts, by=command_line()).shared
        if not shared:
            raise StoreError("the store cannot be reached")
        status = circuit.status()
    until = "" if status.until is None else f" until {iso_time(status.until)}"
    return f"{circuit.name}: {status.state.value}{until}: {status.why}"


def _reset(circuit: Circuit) -> bool:
    with audited("circuit.reset", circuit.name, by=command_line()) as change:
        change.before = circuit.status(fresh=True).state.value
        shared = circuit.reset()
        change.after = circuit.status().state.value
        if not shared:
            change.failed = "the store is unavailable"
    return shared


def limits(arguments: argparse.Namespace) -> int:
    """Print what a caller has left under a limit, or give it the full quota again."""
    return _reported(lambda: _limit(arguments))


def _limit(arguments: argparse.Namespace) -> str:
    config = load(arguments.file)
    with shared_gateway(config, arguments.file) as built:
        known = built.limits
        limit = known[_named(arguments.policy, known, "limit")]
        if arguments.action == "clear":
            clear_audited(arguments.policy, arguments.key, limit, by=command_line())
        standing = limit.standing(plain_key(arguments.key))
    return "\n".join(map(_line, standing)) or "full quota"


def _line(standing: LimitStanding) -> str:
    plan = f" (plan {standing.plan})" if standing.plan else ""
    return f"{standing.name}{plan}: {standing.remaining} of {standing.limit} left"
