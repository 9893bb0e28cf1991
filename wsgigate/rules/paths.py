"""Path patterns that match every spelling of a path.

Applications differ in the spellings of a path that they serve: one serves ``/login`` only, another
``/login/`` and ``//login`` as well. A rule for ``/login`` must hold for every spelling that some
application may serve as it, or an attacker bypasses the rule. These patterns therefore match more
than routes do: a path matches if one of its interpretations does.

- Trailing and repeated slashes are ignored.
- Parameters of a segment (``/login;x=1``), dot segments, backslashes and escaped slashes are tried
  both literally and resolved.
- With *ignore_case* the case is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["PathPatterns"]

_SLASHES = re.compile(r"//+")
_PARAMETERS = re.compile(r";[^/]*")
_ODD = re.compile(r"[;\\]|/\.|%2[fF]")
_DOTTED_I = {0x130: "i", 0x131: "i"}  # to re.IGNORECASE they are an i, to str.casefold not
_VARIABLE = re.compile(r"\*|\{[A-Za-z_][A-Za-z0-9_]*\}")


class PathPatterns:
    """A set of path patterns.

    :param patterns: ``/login`` is that path, ``/static/*`` that path and all below it; within a
        path ``*`` and ``{name}`` stand for one segment. Not percent-encoded.
    :param ignore_case: Whether ``/LOGIN`` matches ``/login``.
    :raises ValueError: A pattern is malformed; the message names it.
    """

    def __init__(self, patterns: Iterable[str], *, ignore_case: bool = False) -> None:
        if isinstance(patterns, str):
            raise ValueError(f"a list of paths is expected, not the text {patterns!r}")
        self._ignore_case = ignore_case
        self._exact: dict[str, str] = {}
        self._below: list[tuple[str, str]] = []
        self._variable: list[tuple[re.Pattern[str], str]] = []
        for pattern in patterns:
            self._add(pattern)

    def __bool__(self) -> bool:
        return bool(self._exact or self._below or self._variable)

    def find(self, path: str) -> str | None:
        """Return the first pattern that *path* matches, exact ones first; ``None`` if none does.

        :param path: Decoded, as ``PATH_INFO`` is (PEP 3333).
        """
        plain = self._normal(path)
        found = self._look(plain)
        if found is None and _ODD.search(path) is not None:
            found = self._look(self._normal(_resolved(path)))
        return found

    def _add(self, pattern: object) -> None:
        if not isinstance(pattern, str) or not pattern.startswith("/"):
            raise ValueError(f'{pattern!r}: expected a path such as "/login" or "/static/*"')
        if "%" in pattern or "?" in pattern or "#" in pattern:
            raise ValueError(f"{pattern!r}: a path is written without escapes and without a query")
        below = pattern.endswith("/*")
        raw = pattern[:-1] if below else pattern
        path = self._normal(raw.encode("utf-8").decode("latin-1"))
        if any(segment in (".", "..") for segment in path.split("/")):
            raise ValueError(f"{pattern!r}: a path has no dot segments")
        segments = path.split("/")[1:]
        variable = [_VARIABLE.fullmatch(segment) is not None for segment in segments]
        for segment, varies in zip(segments, variable, strict=True):
            if not varies and ("*" in segment or "{" in segment or "}" in segment):
                raise ValueError(f"{pattern!r}: * and {{name}} stand for a whole segment")
        if any(variable):
            parts = [
                "[^/]+" if v else re.escape(s) for s, v in zip(segments, variable, strict=True)
            ]
            end = "(?:/.*)?" if below else ""
            compiled = re.compile("/" + "/".join(parts) + end, re.DOTALL)
            self._variable.append((compiled, pattern))
        elif below:
            self._below.append((path + "/", pattern))
        else:
            self._exact.setdefault(path, pattern)

    def _normal(self, path: str) -> str:
        path = path.rstrip("/")
        if path[:1] != "/":  # werkzeug's server passes "POST login", and Flask serves it as /login
            path = "/" + path if path else path
        if "//" in path:
            path = _SLASHES.sub("/", path)
        if self._ignore_case:
            if not path.isascii():
                path = path.encode("latin-1", "replace").decode("utf-8", "replace")
            path = path.translate(_DOTTED_I).casefold()
        return path

    def _look(self, path: str) -> str | None:
        found = self._exact.get(path)
        if found is not None:
            return found
        if self._below:
            whole = path + "/"
            for prefix, pattern in self._below:
                if whole.startswith(prefix):
                    return pattern
        for compiled, pattern in self._variable:
            if compiled.fullmatch(path) is not None:
                return pattern
        return None


def _resolved(path: str) -> str:
    """Return *path* with parameters, dot segments, backslashes and escaped slashes resolved."""
    path = path.replace("\\", "/").replace("%2f", "/").replace("%2F", "/")
    path = _PARAMETERS.sub("", path)
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if segments:
                segments.pop()
        elif segment not in (".", ""):
            segments.append(segment)
    return "/" + "/".join(segments)
