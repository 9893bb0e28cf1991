"""The constraints file: exact versions of all dependencies, for each supported Python."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def _lines() -> list[Requirement]:
    text = (ROOT / "constraints.txt").read_text()
    return [Requirement(line) for line in text.splitlines() if not line.startswith("#")]


def _releases() -> list[str]:
    return re.findall(r"Python :: (3\.\d+)", SETUP["metadata"]["classifiers"])


def _direct() -> list[str]:
    extras = SETUP["options.extras_require"].values()
    packages = [SETUP["options"]["install_requires"], *extras]
    lists = [*map(str.split, packages), *PROJECT["dependency-groups"].values()]
    wanted = {Requirement(line).name for each in lists for line in each}
    return sorted({canonicalize_name(name) for name in wanted} | {"pip", "setuptools"})


@pytest.mark.parametrize("release", _releases())
def test_every_dependency_has_one_version_for_each_python(release: str) -> None:
    environment = {"python_version": release, "python_full_version": f"{release}.0"}
    here = [line for line in _lines() if not line.marker or line.marker.evaluate(environment)]
    names = [canonicalize_name(line.name) for line in here]
    assert sorted(names) == sorted(set(names))
    assert [name for name in _direct() if name not in names] == [], "run make update"


def test_a_constraint_is_a_version_and_no_address() -> None:
    for line in _lines():
        assert line.url is None
        assert [each.operator for each in line.specifier] == ["=="], str(line)
