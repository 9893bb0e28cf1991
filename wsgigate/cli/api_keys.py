"""The command keys: it changes the API keys in the file or the store of a gateway."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsgigate.admin.api_keys import listed, note_key
from wsgigate.auth.api_keys import KeyRecord, document_of
from wsgigate.cli.main import failed
from wsgigate.cli.operations import shared_store
from wsgigate.config.build_routes import api_keys_of
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import load
from wsgigate.config.model import Config
from wsgigate.coordination.api_keys import ApiKeys
from wsgigate.store import StoreError
from wsgigate.telemetry.audit import audited, command_line
from wsgigate.units import parse_duration

__all__ = ["change_keys", "keys"]


@contextmanager
def _keys_of(config: Config, path: str) -> Iterator[ApiKeys]:
    """Yield the keys of the gateway that *config*, read from the file *path*, describes.

    :raises ConfigError: The gateway cannot be built.
    :raises ValueError: The keys are private to each worker.
    """
    folder = Path(path).absolute().parent
    in_file = config.api_keys is not None and config.api_keys.file is not None
    if in_file and config.store.url == "memory:":
        # only the times of last use are in the store, which no other process sees
        yield api_keys_of(config, None, folder)
        return
    with shared_store(config, path) as store:
        yield api_keys_of(config, store, folder)


def keys(arguments: argparse.Namespace) -> int:
    """Create, list, revoke or rotate API keys."""
    try:
        config = load(arguments.file)
    except ConfigError as error:
        return failed(error)
    return change_keys(arguments, config, arguments.file)


def change_keys(arguments: argparse.Namespace, config: Config, path: str) -> int:
    """Create, list, revoke or rotate API keys of the gateway that *config* describes.

    :param path: The file that *config* was read from.
    """
    act = {"create": _create, "list": _list, "revoke": _revoke, "rotate": _rotate}
    try:
        with _keys_of(config, path) as found:
            act[arguments.action](found, arguments)
        if arguments.action == "create":
            _check_plan(arguments.plan, config, path)
    except (ConfigError, ValueError) as error:
        return failed(error)
    except StoreError as error:
        if arguments.action == "list":
            return failed(f"the keys cannot be read: {error}", 1)
        return failed(f"unknown whether the change took effect: {error}", 1)
    return 0


def _check_plan(plan: str, config: Config, path: str) -> None:
    """Warn of a *plan* that the limiters of the file *path* do not have, if they have any."""
    plans: set[str] = set()
    for _, entry in config.middlewares_at():
        if entry.use == "limiter":
            plans.update((entry.options or {}).get("plans") or ())
    if plan and plans and plan not in plans:
        there = ", ".join(sorted(plans))
        print(
            f"wsgigate: warning: --plan: no limiter of {path} has the plan {plan!r}, so the "
            f"default quotas apply; the plans are {there}",
            file=sys.stderr,
        )


def _create(found: ApiKeys, arguments: argparse.Namespace) -> None:
    lasts = None if arguments.expires is None else _duration("--expires", arguments.expires)
    with audited("api-key.create", "", by=command_line()) as change:
        issued = found.create(
            arguments.owner,
            plan=arguments.plan,
            scopes=arguments.scope,
            name=arguments.name,
            lasts=lasts,
        )
        note_key(change, issued.record)
    _print(arguments, issued.record, issued.key)


def _rotate(found: ApiKeys, arguments: argparse.Namespace) -> None:
    given = arguments.overlap
    overlap = None if given is None else _duration("--overlap", given)
    with audited("api-key.rotate", arguments.id, by=command_line()) as change:
        issued = found.rotate(arguments.id, overlap=overlap)
        note_key(change, issued.record)
    _print(arguments, issued.record, issued.key)


def _revoke(found: ApiKeys, arguments: argparse.Namespace) -> None:
    with audited("api-key.revoke", arguments.id, by=command_line()) as change:
        record = found.revoke(arguments.id)
        note_key(change, record)
    _print(arguments, record)


def _list(found: ApiKeys, arguments: argparse.Namespace) -> None:
    records = [record for record in listed(found) if arguments.owner in (None, record["owner"])]
    if arguments.json:
        print(json.dumps(records, indent=2))
        return
    rows = [("ID", "OWNER", "PLAN", "SCOPES", "STATE", "LAST USED", "NAME")]
    rows += [
        (
            record["id"],
            record["owner"],
            record.get("plan", "-"),
            " ".join(record.get("scopes", [])) or "-",
            _state(record),
            record.get("lastUsed", "-").partition(".")[0],
            record.get("name", ""),
        )
        for record in records
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def _state(record: Mapping[str, Any]) -> str:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())  # such texts compare as times do
    if "revoked" in record:
        return f"revoked {record['revoked']}"
    if "expires" not in record:
        return "valid"
    return f"{'expired' if record['expires'] <= now else 'valid until'} {record['expires']}"


def _print(arguments: argparse.Namespace, record: KeyRecord, key: str = "") -> None:
    document = document_of(record, digests=False)
    if arguments.json:
        print(json.dumps({**({"key": key} if key else {}), **document}, indent=2))
        return
    if key:
        print(f"key: {key}")
    for name, value in document.items():
        if name == "previous":
            for each in value:
                print(f"old key valid until: {each['until']}")
        else:
            print(f"{name}: {' '.join(value) if isinstance(value, list) else value}")


def _duration(option: str, text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
