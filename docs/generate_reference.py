"""Generate ``reference.rst``, ``environ.rst``, ``server_keys.rst`` and ``metrics_names.rst``.

Run it after changing keys of the file, environ keys or metrics::

    python docs/generate_reference.py
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from wsgigate.config import model
from wsgigate.config.middlewares import MIDDLEWARES
from wsgigate.config.tables import ListOf, MapOf, Table, TableKey, UnionOf
from wsgigate.config.types import Duration, Kind
from wsgigate.http import wsgi
from wsgigate.server_check import SERVER_KEYS
from wsgigate.telemetry.metrics import families

FOLDER = Path(__file__).parent

PACKAGE = FOLDER.parent / "wsgigate"

DEFAULTS = {
    "breaker.name": 'derived from the route; ``"default"`` in the top-level list',
    "concurrency-limiter.name": 'derived from the route; ``"default"`` in the top-level list',
    "limiter.name": 'derived from the route; ``"default"`` in the top-level list',
    "services.NAME.instances": "none: this or ``discover`` is required",
    "services.NAME.discover": "none: this or ``instances`` is required",
    "services.NAME.discover.scheme": '``"http"``',
    "services.NAME.balance.slow_start": "off: the full share at once",
    "services.NAME.health.fields": "none",
    "services.NAME.min_response_rate": '``"100B"``',
    "routes.fallback.content_type": "``text/plain; charset=utf-8``, or by file name",
    "routes.fallback.reasons": "all",
    "routes.fallback.status": "``503``",
    "services.NAME.fallback.content_type": "``text/plain; charset=utf-8``, or by file name",
    "services.NAME.fallback.reasons": "all",
    "services.NAME.fallback.status": "``503``",
    "routes.preserve_host": "as the service's ``preserve_host``",
}
"""Defaults that neither the signature nor a sentence of the description gives."""

HEADINGS = {
    "gateway": "``[gateway]``",
    "store": "``[store]``",
    "admin": "``[admin]``",
    "logging": "``[logging]``",
    "metrics": "``[metrics]``",
    "tracing": "``[tracing]``",
    "maintenance": "``[maintenance]``",
    "registry": "``[registry]``",
    "api_keys": "``[api_keys]``",
    "middleware": "``[[middleware]]``",
    "services": "``[services.NAME]``",
    "routes": "``[[routes]]``",
}


def reference() -> str:
    """Return the text of ``reference.rst``: every key of the file."""
    parts = [".. Written by generate_reference.py; changes made here are lost.\n"]
    for name, key in Table(model.Config).keys.items():
        parts.append(_heading(HEADINGS[name], "-"))
        parts.append(f"{key.doc}\n")
        if name == "middleware":
            parts += _middlewares()
        elif isinstance(key.kind, MapOf):
            parts += _table(key.kind.item, f"{name}.NAME")
        else:
            parts += _table(key.kind, name)
    return "\n".join(parts)


def _middlewares() -> Iterator[str]:
    yield (
        "``use`` names the middleware; all other keys are its options. With "
        '``use = "package.module:factory"`` they are passed to the factory unchanged: '
        "``factory(app, **options)``.\n"
    )
    for use, known in sorted(MIDDLEWARES.items()):
        yield _heading(f'``use = "{use}"``', "~")
        yield f"{_literal(known.table.doc)}\n"
        yield from _keys(known.table, use)


def _table(kind: Kind[Any], path: str) -> Iterator[str]:
    while isinstance(kind, ListOf):
        kind = kind.item
    if not isinstance(kind, Table):
        raise TypeError(f"{path}: {kind!r} is not a table")
    yield from _keys(kind, path)


def _keys(table: Table[Any], path: str) -> Iterator[str]:
    """Yield the description of each key of a table, the tables below it after all of them."""
    below: list[str] = []
    for each, key in table.keys.items():
        name = f"{path}.{each}"
        yield (
            f".. confval:: {name}\n"
            f"   :type: {_literal(_type(key.kind))}\n"
            f"   :default: {DEFAULTS.get(name) or _default(key)}\n"
            "\n"
            f"   {_literal(key.doc)}\n"
        )
        inner = _inner_table(key.kind)
        if inner is not None:
            below += [f".. rubric:: ``{name}``\n", f"{_literal(inner.doc)}\n"]
            below += _keys(inner, name)
    yield from below


def _inner_table(kind: Kind[Any]) -> Table[Any] | None:
    if isinstance(kind, ListOf | MapOf):
        return _inner_table(kind.item)
    if isinstance(kind, UnionOf):
        return _inner_table(kind.first) or _inner_table(kind.second)
    return kind if isinstance(kind, Table) else None


def _type(kind: Kind[Any]) -> str:
    if isinstance(kind, ListOf):
        return f"{kind.expected}, each {_type(kind.item)}"
    if isinstance(kind, MapOf):
        return f"a table, each value {_type(kind.item)}"
    if not isinstance(kind, UnionOf):
        return kind.expected
    first, second = kind.first, _type(kind.second)
    if isinstance(first, Table):
        return second if isinstance(kind.second, Table) else f"{second}, or a table"
    if isinstance(first, ListOf) and "list" not in second:
        return f"{second}, or a list of them"
    return second


def _default(key: TableKey) -> str:
    if key.required:
        return "none: the key is required"
    stated = re.search(r"Default: ([^.]+(?:\.[^ ][^.]*)*)\.", key.doc)
    if stated and key.default in (None, "", ()):
        return _literal(stated[1])
    if isinstance(key.kind, Duration) and key.default is not None:
        return _shown(f"{key.default:g}s")
    return _shown(key.default)


def _shown(value: object) -> str:
    if value is None or value == "":
        return "not set"
    if isinstance(value, bool):
        return "``true``" if value else "``false``"
    if isinstance(value, tuple):
        return f"``[{', '.join(_plain(item) for item in value)}]``"
    if isinstance(value, dict):
        return "``{}``"
    return f"``{_plain(value)}``"


def _plain(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _literal(text: str) -> str:
    """Return *text* with what is between quotes as literals, and without any markup in the rest."""
    text = re.sub(r'(\{ [^}]*\}|"[^"]*")', r"``\1``", text)
    return "".join(
        part if part.startswith("``") else re.sub(r"([*_|])", r"\\\1", part)
        for part in re.split(r"(``.*?``)", text)
    )


def _heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def _words(names: list[str]) -> str:
    return ", ".join(f"``{name}``" for name in names)


def environ() -> str:
    """Return the text of ``environ.rst``: the table of environ keys."""
    lines = [
        ".. Written by generate_reference.py; changes made here are lost.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - Constant",
        "     - Key",
        "     - Type",
        "     - Meaning",
    ]
    for name, doc in _documented():
        kind, _, meaning = " ".join(doc.split()).partition(": ")
        if not (kind.startswith("``") and meaning):
            raise ValueError(f"{name}: expected ``type``: meaning, got {doc!r}")
        lines += [
            f"   * - ``{name}``",
            f'     - ``"{getattr(wsgi, name)}"``',
            f"     - {kind}",
            f"     - {meaning[:1].upper()}{meaning[1:]}",
        ]
    return "\n".join([*lines, ""])


def server_keys() -> str:
    """Return the text of ``server_keys.rst``: which server applies which key of ``[gateway]``."""
    lines = [
        ".. Written by generate_reference.py; changes made here are lost.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 20 16 32 32",
        "",
        "   * - Key",
        "     - gunicorn with GateWorker",
        "     - gunicorn's own worker, where the release of gunicorn is not supported",
        "     - granian",
    ]
    for name, servers in SERVER_KEYS.items():
        if servers.keys() == {"other"}:
            continue
        lines += [f"   * - ``gateway.{name}``", "     - Applied"]
        for server in ("gthread", "granian"):
            found = servers.get(server)
            text = "Applied" if found is None else f"{found.severity.capitalize()}: {found.text}"
            lines.append(f"     - {text}")
    return "\n".join([*lines, ""])


def metrics_names() -> str:
    """Return the text of ``metrics_names.rst``: every metric that the package declares."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "wsgigate.telemetry.metrics import" in path.read_text(encoding="utf-8"):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            import_module(".".join(parts).removesuffix(".__init__"))
    lines = [
        ".. Written by generate_reference.py; changes made here are lost.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 34 9 25 32",
        "",
        "   * - Name",
        "     - Kind",
        "     - Labels",
        "     - What it counts or measures",
    ]
    for name, family in families().items():
        if not name.startswith(("wsgigate_", "http_")):
            continue  # an instrument of a test
        shown = f"{name}_total" if family.kind == "counter" else name
        labels = ", ".join(f"``{label}``" for label in family.labels)
        lines += [f"   * - ``{shown}``", f"     - {family.kind}"]
        lines += [f"     - {labels}".rstrip(), f"     - {family.help}"]
    return "\n".join([*lines, ""])


def _documented() -> Iterator[tuple[str, str]]:
    """Yield the environ keys of ``wsgigate.http.wsgi`` with the text below each."""
    body = ast.parse(inspect.getsource(wsgi)).body
    for statement, following in pairwise(body):
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and isinstance(statement.value, ast.Constant)
            and str(statement.value.value).startswith("wsgigate.")
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            yield statement.targets[0].id, str(following.value.value)


if __name__ == "__main__":
    (FOLDER / "reference.rst").write_text(reference(), encoding="utf-8")
    (FOLDER / "environ.rst").write_text(environ(), encoding="utf-8")
    (FOLDER / "server_keys.rst").write_text(server_keys(), encoding="utf-8")
    (FOLDER / "metrics_names.rst").write_text(metrics_names(), encoding="utf-8")
