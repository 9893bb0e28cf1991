"""Counts turns of phrase that plain technical English avoids, per file of the package and the docs.

``make prose`` runs it. The list finds candidates: it does not judge, and always exits with 0.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent

PHRASES = {
    "told, tell": r"told|tell|tells|telling",
    "who": r"who|whom|whose|whoever|whomever",
    "nobody, somebody": r"nobody|somebody|anybody|everybody|no one|someone",
    "say": r"say|says|said|saying",
    "ask": r"ask|asks|asked|asking",
    "know": r"know|knows|knew",
    "can not": r"can not",
    "of its own": r"of (?:its|their|his) own",
    "is to": r"(?:is|are) to be",
    "so many": r"so (?:many|long|much)(?! (?:as|that))",
    "by now": r"by now|meanwhile|at hand",
    "what becomes of": r"becomes? of|(?:come|comes|came) of",
    "take note": r"takes? note|(?:be|is) heard of|heard of",
}
"""The phrases by the name they are listed under, as regular expressions for whole words."""

_PATTERNS = {
    name: re.compile(rf"\b(?:{phrase})\b", re.IGNORECASE) for name, phrase in PHRASES.items()
}


def pages() -> list[Path]:
    """Return the files that are searched."""
    return [
        *sorted((ROOT / "wsgigate").rglob("*.py")),
        *sorted((ROOT / "docs").glob("*.rst")),
        ROOT / "README.rst",
        ROOT / "CHANGES.rst",
    ]


def count(text: str) -> Counter[str]:
    """Return how often each of the phrases occurs in *text*."""
    found = {name: len(pattern.findall(text)) for name, pattern in _PATTERNS.items()}
    return Counter({name: times for name, times in found.items() if times})


def main() -> None:
    """Print the counts of each file, the highest first, then those of each phrase."""
    counts = {page: count(page.read_text(encoding="utf-8")) for page in pages()}
    for page, found in sorted(counts.items(), key=lambda each: -each[1].total()):
        if found:
            listed = ", ".join(f"{name} {times}" for name, times in found.most_common())
            print(f"{found.total():5} {page.relative_to(ROOT)}: {listed}")
    total = sum(counts.values(), Counter())
    print(f"{total.total():5} in all")
    for name, times in total.most_common():
        print(f"{times:5} {name}")


if __name__ == "__main__":
    main()
