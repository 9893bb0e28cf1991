"""The worked examples of CONTRIBUTING.rst, carried out in a copy of the tree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
_SECTION = re.compile(r"^([A-Z].*)\n~{3,}\n", re.MULTILINE)
_EDIT = re.compile(
    r"^(?:New file ``(?P<new>\S+)``|In ``(?P<old>\S+)``, (?P<side>above|below) ``(?P<line>.+)``):"
    r"\n\n\.\. code-block:: \w+\n\n(?P<text>(?:   .*\n|\n)+)",
    re.MULTILINE,
)


class Edit(NamedTuple):
    """A new file, or lines above or below the line of a file that begins with *line*."""

    file: str
    text: str
    side: str = ""
    line: str = ""

    def apply(self, tree: Path) -> None:
        file = tree / self.file
        if not self.line:
            assert not file.exists(), f"{self.file} exists"
            file.write_text(self.text)
            return
        lines = file.read_text().splitlines(keepends=True)
        [at] = [n for n, line in enumerate(lines) if line.strip().startswith(self.line)]
        margin = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
        gap = ("\n" if margin else "\n\n") if self.text.startswith(("class ", "def ")) else ""
        lines.insert(at + (self.side == "below"), indent(self.text, margin) + gap)
        file.write_text("".join(lines))


def _edits(section: str) -> list[Edit]:
    found = []
    for match in _EDIT.finditer(section):
        text = dedent(match["text"]).strip("\n") + "\n"
        found.append(
            Edit(match["new"] or match["old"], text, match["side"] or "", match["line"] or "")
        )
    return found


def _examples() -> dict[str, list[Edit]]:
    page = (ROOT / "CONTRIBUTING.rst").read_text().partition("Worked examples\n")[2]
    _, *parts = _SECTION.split(page)
    return dict(zip(parts[::2], map(_edits, parts[1::2]), strict=True))


EXAMPLES = _examples()


def _python(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in *tree*, whose package comes before the installed one."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the package and its configuration with all examples carried out."""
    tree = tmp_path_factory.mktemp("tree")
    unwanted = shutil.ignore_patterns("__pycache__", "_build")
    shutil.copytree(ROOT / "wsgigate", tree / "wsgigate", ignore=unwanted)
    shutil.copytree(ROOT / "docs", tree / "docs", ignore=unwanted)
    for name in ("setup.cfg", "pyproject.toml", "README.rst"):
        shutil.copy(ROOT / name, tree)
    for edits in EXAMPLES.values():
        for edit in edits:
            (tree / edit.file).parent.mkdir(parents=True, exist_ok=True)
            edit.apply(tree)
    shutil.copy(ROOT / "tests" / "test_layers.py", tree / "tests")
    return tree


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_changes_at_most_two_files_of_the_package(name: str) -> None:
    changed = {edit.file for edit in EXAMPLES[name] if edit.line}
    new = [edit.file for edit in EXAMPLES[name] if not edit.line]
    assert 1 <= len(changed) <= 2
    assert len([file for file in new if file.startswith("wsgigate/")]) <= 1
    assert len([file for file in new if file.startswith("tests/")]) == 1


def test_the_examples_pass_their_tests_and_those_of_the_floors(tree: Path) -> None:
    done = _python(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_examples_pass_the_linter(tree: Path) -> None:
    done = _python(tree, "-m", "ruff", "check", "--no-cache", ".")
    assert done.returncode == 0, done.stdout
    done = _python(tree, "-m", "ruff", "format", "--no-cache", "--check", ".")
    assert done.returncode == 0, done.stdout


def test_the_keys_of_an_example_are_in_the_schema_and_the_reference(tree: Path) -> None:
    schema = json.loads(_python(tree, "-m", "wsgigate", "schema").stdout)
    [timing] = [
        each for each in schema["$defs"]["middleware"]["oneOf"] if each["title"] == "server-timing"
    ]
    assert '"minimum": 0, "maximum": 6' in json.dumps(timing["properties"]["digits"])
    assert "user_agent" in schema["$defs"]["Service"]["properties"]
    code = "import runpy; print(runpy.run_path('docs/generate_reference.py')['reference']())"
    done = _python(tree, "-c", code)
    assert "The number of decimal digits of the milliseconds." in done.stdout
    assert "The User-Agent to send." in done.stdout


WRONG = """\
middleware = [{ use = "server-timing", digits = 7, metric = "a b" }]
[services.orders]
instances = ["http://10.0.0.4:8000"]
user_agent = 7
[services.carts]
instances = ["http://10.0.0.5:8000"]
balance = "least-request"
[services.stock]
discover = "env:my stock"
[[routes]]
path = "/"
services = [
  { service = "orders", weight = 1 },
  { service = "carts", weight = 1 },
  { service = "stock", weight = 1 },
]
"""

ERRORS = [
    "middleware[0].digits: expected a whole number from 0 to 6, got the number 7",
    'middleware[0].metric: expected a name such as "gateway", got "a b"',
    'services.orders.user_agent: expected a text such as "shop/1.0", got the number 7',
    'services.carts.balance: expected "two-choices", "least-requests", ',
    "services.stock.discover: must be a variable, as in \"env:ORDERS\", got 'my stock'",
]


def test_a_wrong_value_of_an_examples_key_is_an_error(tree: Path) -> None:
    (tree / "wrong.toml").write_text(WRONG)
    done = _python(tree, "-m", "wsgigate", "check", "wrong.toml")
    assert done.returncode == 2, done.stderr
    lines = [line.removeprefix("wrong.toml: ") for line in done.stderr.splitlines()]
    assert [line[: len(error)] for line, error in zip(lines, ERRORS, strict=True)] == ERRORS
