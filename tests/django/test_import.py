"""The import of ``wsgigate.django`` without Django."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_DJANGO = """
import sys

class WithoutDjango:
    def find_spec(self, name, path=None, target=None):
        if name == "django":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, WithoutDjango())
import wsgigate.django
"""


def test_without_django_the_error_names_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_DJANGO], capture_output=True, text=True)
    message = "wsgigate.django requires Django 5.2 or later: pip install 'wsgigate[django]'"
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {message}"
