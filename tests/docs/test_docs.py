"""What the pages print is run: programs, files and commands, with the output they show."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import pickle
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from freezegun import freeze_time

from tests.docs.pages import BLOCKS, FOLDER, NAMED, PAGES, RUN, commands, output, write_all
from wsgigate.config.build import build
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import read_file

SERVED = {
    *("limited", "monolith", "shop", "run", "gunicorn", "gevent", "gate_worker"),
    *("registered", "registered_django", "registered_gunicorn", "register"),
}
"""Console blocks that start a server: tests/acceptance/test_docs.py runs them."""

APART = {"mysite/wsgi.py"}
"""Programs that need their own process, as they set up all of it."""

ELSEWHERE = {
    *("gateway_gunicorn.py", "registered_gunicorn.py", "registered.py", "mysite/registered.py"),
}
"""Programs that a server reads: run by those that are served."""

STATUS = {"broken.sh": 2}

FROZEN = {"breaker.py", "limiter.py", "pages.py"}
"""Programs that print how long to wait: the time stands still while they run."""

SETTINGS = """\
SECRET_KEY = "of the tests"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "mysite.settings"
urlpatterns = []
"""


def named(suffix: str) -> list[str]:
    return sorted(name for name in NAMED if name.endswith(suffix))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the folder of a reader who has saved all that is printed, and works there."""
    write_all(tmp_path)
    (tmp_path / "mysite" / "settings.py").write_text(SETTINGS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("JWT_SECRET", "change me: at least 32 bytes long")
    monkeypatch.setenv("ACME_SECRET", "change me: at least 32 bytes long")
    monkeypatch.setenv("INTROSPECTION_SECRET", "change me")
    for sender in ("GITHUB", "OLD_GITHUB", "SHOPIFY", "STRIPE"):
        monkeypatch.setenv(f"{sender}_SECRET", f"change me, {sender}")
    monkeypatch.setenv("INTERNAL_SECRET", "another one: at least 32 bytes long")
    monkeypatch.setenv("ADMIN_TOKEN", "change me: 32 visible characters".replace(" ", "-"))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_every_program_file_and_command_has_a_name_by_which_it_is_run() -> None:
    suffixes = {"python": ".py", "toml": ".toml", "console": ".sh"}
    for block in BLOCKS:
        if block.language in RUN:
            suffix = suffixes[block.language]
            assert block.name.endswith(suffix), f"{block.page}: {block.text}"
        else:
            assert block.language in ("text", "json"), f"{block.page}: {block.language!r}"
    names = [block.name for block in BLOCKS if block.name]
    assert len(names) == len(set(names))
    for page, text in PAGES.items():
        assert "\n::\n" not in text, f"{page}: a block without a language"
        assert not any(
            line.rstrip().endswith("::") and not line.lstrip().startswith("..")
            for line in text.splitlines()
        ), f"{page}: a block without a language"
        assert ">>>" not in text, f"{page}: a session of Python that is not run"
        assert text.count("code-block::") == sum(block.page == page for block in BLOCKS)


def test_every_output_belongs_to_a_program() -> None:
    for name in named(".out"):
        assert name.removesuffix(".out") + ".py" in NAMED


@pytest.mark.parametrize("name", sorted(set(named(".py")) - APART - ELSEWHERE))
def test_a_program_does_what_is_printed(
    name: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    printed = io.StringIO()
    still = freeze_time("2030-06-01 12:00:00") if name in FROZEN else contextlib.nullcontext()
    with contextlib.redirect_stdout(printed), still:
        module = runpy.run_path(str(folder / name), run_name=name.removesuffix(".py"))
        for test in [value for key, value in module.items() if key.startswith("test_")]:
            for mark in getattr(test, "pytestmark", ()):
                for fixture in mark.args:
                    request.getfixturevalue(fixture)
            test()
    shown = NAMED.get(name.removesuffix(".py") + ".out")
    if shown:
        assert printed.getvalue() == shown.text
    else:  # nothing but an access log
        lines = printed.getvalue().splitlines()
        assert not [line for line in lines if not line.startswith('{"time":')]


@pytest.mark.parametrize("name", sorted(APART))
def test_a_program_that_sets_up_its_process_can_be_loaded(name: str, folder: Path) -> None:
    module = name.removesuffix(".py").replace("/", ".")
    code = f"from {module} import application; from werkzeug.test import Client; "
    code += "answer = Client(application).get('/', buffered=True)\n"
    code += "assert answer.headers['X-RateLimit-Limit'] == '100'"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", named(".toml"))
def test_a_file_describes_a_gateway_and_gives_no_warnings(name: str, folder: Path) -> None:
    reading = read_file(name)
    if f"{name.removesuffix('.toml')}.sh" in STATUS:
        with pytest.raises(ConfigError):
            reading.errors.raise_any(name)
        return
    reading.errors.raise_any(name)
    assert reading.warnings == []
    assert pickle.loads(pickle.dumps(reading.config)) == reading.config  # for a spawned worker
    build(reading.config, path=name).close()


@pytest.mark.parametrize("name", sorted(set(named(".sh")) - {f"{each}.sh" for each in SERVED}))
def test_commands_print_what_is_shown(name: str, folder: Path) -> None:
    block = NAMED[name]
    assert commands(block)
    if any(line.startswith("pip ") for line in commands(block)):
        for line in commands(block):
            extra = shlex.split(line)[-1].partition("[")[2].rstrip("]")
            metadata = importlib.metadata.metadata("wsgigate")
            assert extra in (metadata.get_all("Provides-Extra") or [])
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", "\n".join(commands(block))],
        cwd=folder,
        env={"PATH": path, "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.stdout == output(block)
    assert done.returncode == STATUS.get(name, 0)


def test_what_starts_a_server_is_run_among_the_acceptance_tests() -> None:
    source = (Path(__file__).parents[1] / "acceptance" / "test_docs.py").read_text()
    for name in SERVED:
        assert f"{name}.sh" in NAMED
        assert f'"{name}"' in source
    for name in set(named(".sh")) - {f"{each}.sh" for each in SERVED}:
        for line in commands(NAMED[name]):
            assert not line.startswith(("gunicorn", "wsgigate run")), f"{name}: {line}"


@pytest.mark.parametrize("name", ["reference", "environ", "server_keys", "metrics_names"])
def test_the_generated_pages_are_what_the_code_says(name: str) -> None:
    generator = runpy.run_path(str(FOLDER / "generate_reference.py"))
    assert PAGES[f"{name}.rst"] == generator[name](), "run docs/generate_reference.py"
