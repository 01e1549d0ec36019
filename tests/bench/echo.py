"""The smallest side: it answers with what it was asked, prints noise, and fails on request."""

from __future__ import annotations

import sys
from typing import Any

from tests.bench.sides import Answer, serve


def main() -> None:
    """Answer until there are no more requests."""
    serve(lambda settings: lambda **request: _answer(settings, request))


def _answer(settings: dict[str, Any], request: dict[str, Any]) -> Answer:
    sys.stdout.write("what a library prints\n")
    if request.get("fail"):
        raise ValueError("as asked")
    return {"heard": request, "settings": settings}


if __name__ == "__main__":
    main()
