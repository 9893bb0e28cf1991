"""The names in the documentation exist, and each name of a class or a type means one thing."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.docs.pages import PAGES
from wsgigate.cli.main import main

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "wsgigate"
_NAME = re.compile(r"(?<![\w./-])wsgigate(?:\.\w+)+(?::\w+)?")
_FILE = re.compile(r"``((?:[\w.-]+/)+(?:[\w-]+\.(?:py|rst|toml|cfg|txt|json|svg))?)``")
_KEY = re.compile(r"``((?:gateway|store|admin|registry)\.\w+)(?: = [^`]*)?``")
_COMMAND = re.compile(r"wsgigate (\w+)((?: [^ `\n|;]+)*)")

TEXTS = {
    file.relative_to(ROOT): file.read_text(encoding="utf-8")
    for pattern in ("*.rst", "*.md", "docs/*.rst", "examples/**/*.*")
    for file in ROOT.glob(pattern)
    if file.suffix in {".rst", ".md", ".py", ".toml"}
}
EXAMPLES = TEXTS[Path("CONTRIBUTING.rst")]
NEW = set(re.findall(r"^New file ``(\S+)``", EXAMPLES, re.MULTILINE))
"""The files that the worked examples add."""

LOGGERS = {
    name
    for file in PACKAGE.rglob("*.py")
    for name in re.findall(r'getLogger\("(wsgigate\.\w+)"\)', file.read_text(encoding="utf-8"))
}

CHECKS = set(re.findall(r'"(wsgigate\.[EW]\d+)"', (PACKAGE / "django" / "checks.py").read_text()))
"""The ids of Django's system checks."""


ALIKE = {
    "Command": "what a command line calls: Django finds the class of a management command by this "
    "name, and the registration sends commands to its process",
    "Refused": "the exception of a rejected request for the error handlers of Flask and of Django; "
    "each derives from what its framework hands to them",
}
"""Names of more than one class or type, and why these are one concept."""


def _types(tree: ast.Module) -> Iterator[str]:
    """Yield the names of classes and of type aliases, private ones without the underscore."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name.lstrip("_")
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        for target in [statement.target] if isinstance(statement, ast.AnnAssign) else targets:
            if isinstance(target, ast.Name) and re.fullmatch("_?[A-Z]+[a-z][A-Za-z]*", target.id):
                yield target.id.lstrip("_")


def test_each_name_of_a_class_or_type_means_one_thing() -> None:
    places: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for name in _types(ast.parse(file.read_text(encoding="utf-8"))):
            places.setdefault(name, []).append(str(file.relative_to(PACKAGE)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert {name: found for name, found in twice.items() if name not in ALIKE} == {}
    assert twice.keys() == ALIKE.keys(), "a reason without its name"


def _found(pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str]]]:
    """Yield each match in the documentation, with its place."""
    for file, text in TEXTS.items():
        for match in pattern.finditer(text):
            yield f"{file}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}", match


@cache
def _exists(name: str) -> bool:
    """Return whether a dotted name is a module, or a name in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return part in getattr(found, "__annotations__", {})
            found = getattr(found, part)
        return True
    return False


def test_each_dotted_name_is_a_name_of_the_package_a_key_of_environ_or_a_logger() -> None:
    known = {*LOGGERS, *CHECKS, *re.findall(r'``"(wsgigate\.\w+)"``', PAGES["environ.rst"])}
    new = {file.removesuffix(".py").replace("/", ".") for file in NEW}
    missing = [
        place
        for place, match in _found(_NAME)
        if match[0] not in known
        and match[0].partition(":")[0] not in new
        and not _exists(match[0].replace(":", "."))
    ]
    assert not missing, "\n".join(missing)


def test_each_file_is_in_the_tree() -> None:
    missing = [
        place
        for place, match in _found(_FILE)
        if match[1] not in NEW
        and not any((folder / match[1]).exists() for folder in (ROOT, PACKAGE, ROOT / "docs"))
    ]
    assert not missing, "\n".join(missing)


def test_each_key_of_the_file_is_in_the_reference() -> None:
    known = set(re.findall(r"confval:: (\S+)", PAGES["reference.rst"]))
    known |= {"gateway.status", "store.since"}  # members of /health
    known |= {"gateway.app", "gateway.py", "gateway.toml"}
    missing = [place for place, match in _found(_KEY) if match[1] not in known]
    assert not missing, "\n".join(missing)


@cache
def _options(command: str) -> set[str]:
    """Return the options of a command of the command line."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return set(re.findall(r"--[a-z][\w-]*", printed.getvalue()))


def test_each_command_has_the_options_that_the_pages_give_it() -> None:
    missing = [
        f"{place} ({option})"
        for place, match in _found(_COMMAND)
        for option in re.findall(r" (--[a-z][\w-]*)", match[2].partition(" -- ")[0])
        if option not in _options(match[1])
    ]
    assert not missing, "\n".join(missing)


def test_each_system_check_is_in_the_table_of_checks() -> None:
    table = PAGES["django.rst"].partition("     - Problem\n")[2].partition("\n\n")[0]
    assert sorted(name for name in CHECKS if f"``{name}``" not in table) == []


def test_each_logger_is_in_the_table_of_loggers() -> None:
    table = PAGES["running.rst"].partition("     - What it logs\n")[2].partition("\n\n")[0]
    assert sorted(name for name in LOGGERS if f"``{name}``" not in table) == []
