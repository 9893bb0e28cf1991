"""Counts turns of phrase that plain technical English avoids, per file of the package and the docs.

It reads what people read: pages without their code blocks and literals, and the comments and texts
of programs. ``make prose`` runs it. The list finds candidates: it does not judge, and always exits
with 0.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent

PHRASES = {
    "told, tell": r"told|tell|tells|telling",
    "who": r"who|whom|whoever|whomever",
    "nobody, somebody": r"nobody|somebody|anybody|everybody|no one|someone",
    "say": r"say|says|said|saying",
    "ask": r"ask|asks|asked|asking",
    "know": r"know|knows|knew",
    "can not": r"can not",
    "of its own": r"of (?:its|their|his) own(?! \w)",
    "is to": r"(?:is|are) to be",
    "so many": r"so (?:many|long|much)(?! (?:as|that))",
    "at hand": r"at hand",
    "what becomes of": r"becomes? of|(?:come|comes|came) of",
    "take note": r"takes? note|(?:be|is) heard of|heard of",
}
"""The phrases by the name they are listed under, as regular expressions for whole words."""

PLAIN = (
    r"(?:client|caller|user|operator|attacker|reader|reporter|anyone|those|people|one) who",
    r"messages? (?:say|says)|(?:say|says) nothing about|proves who issued",
    r"(?:ask|asks|asked|asking) (?:\w+ )?for|asked in",
    r"(?:cannot|may|must|does not|do not) know",
    r"tells? (?:\S+ ){1,4}apart",
    r"so many (?:\w+ ){1,4}that",
    r"(?-i:ASK|ASKING)",  # replies and commands of Redis
)
"""The uses of these words that are plain English: a person is "who", an error's message "says"."""

_PATTERNS = {
    name: re.compile(rf"\b(?:{phrase})\b", re.IGNORECASE) for name, phrase in PHRASES.items()
}
_PLAIN = re.compile(rf"\b(?:{'|'.join(PLAIN)})\b", re.IGNORECASE)
_BLOCK = re.compile(r"^([ ]*)\.\. code-block::.*\n(?:\1[ ]+.*\n|[ ]*\n)*", re.MULTILINE)
_LITERAL = re.compile(r"``[^`]*``|`[^`]*`|:(?:param|ivar) \w+:|\{[^{}]*\}")
_TEXTS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def pages() -> list[Path]:
    """Return the files that are searched."""
    programs = [
        each
        for folder in ("wsgigate", "benchmarks", "docs", "examples", "tests/docs", "tests/support")
        for each in sorted((ROOT / folder).rglob("*.py"))
        if each != Path(__file__).resolve()
    ]
    return [*programs, *sorted((ROOT / "docs").glob("*.rst")), *sorted(ROOT.glob("*.rst"))]


def prose(page: Path) -> str:
    """Return what people read of a file."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".py":
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        texts = [token.string for token in tokens if token.type in _TEXTS]
        text = "\n".join(each for each in texts if " " in each)  # one word is a name
    else:
        text = _BLOCK.sub("\n", text)
    return " ".join(_LITERAL.sub("``", text).split())


def count(text: str) -> Counter[str]:
    """Return how often each of the phrases occurs in *text*, apart from its plain uses."""
    text = _PLAIN.sub("", text)
    found = {name: len(pattern.findall(text)) for name, pattern in _PATTERNS.items()}
    return Counter({name: times for name, times in found.items() if times})


def main() -> None:
    """Print the counts of each file, the highest first, then those of each phrase."""
    counts = {page: count(prose(page)) for page in pages()}
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
