"""The import of ``wsgigate.flask`` without Flask."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_FLASK = """
import sys

class WithoutFlask:
    def find_spec(self, name, path=None, target=None):
        if name == "flask":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, WithoutFlask())
import wsgigate.flask
"""


def test_without_flask_the_error_names_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_FLASK], capture_output=True, text=True)
    message = "wsgigate.flask requires Flask 3.0 or later: pip install 'wsgigate[flask]'"
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {message}"
