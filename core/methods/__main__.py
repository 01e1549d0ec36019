"""`python -m core.methods` writes the README's table of methods; README and registry cannot differ, a test compares."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from core.methods import listed

HEADINGS = ("Method", "Name", "What it does", "Paper", "Merges")
YES_NO = ("yes", "no")


def markdown(
    sentence: Callable[[str], str] = str, headings: Sequence[str] = HEADINGS, yes_no: Sequence[str] = YES_NO
) -> str:
    """The table of all methods as Markdown; `sentence` translates what a method says of itself."""
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for name, method in listed().items():
        paper = f"[{method.paper}]({method.paper_url()})" if method.paper_url() else method.paper
        cells = (sentence(method.title), f"`{name}`", sentence(method.summary), paper, yes_no[not method.merges])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
