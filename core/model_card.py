"""What a model's folder says of itself beside its config: its chat template and its licence. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path

MAX_READ = 65_536  # bytes of a card or a licence


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer brings a chat template, in a file of its own or in its settings."""
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def licence(folder: Path) -> str:
    """The licence named in the model card's front matter, or the first line of a licence file."""
    card = folder / "README.md"
    if card.exists():
        for line in _beginning(card)[:60]:
            if line.startswith("license:"):
                return line.partition(":")[2].strip()
    for path in sorted(folder.glob("LICENSE*")):
        lines = [line.strip() for line in _beginning(path)]
        return next((line for line in lines if line), "")[:80]
    return ""


def _beginning(path: Path) -> list[str]:
    """The first lines of a text that may be of any size."""
    with path.open("rb") as file:
        return file.read(MAX_READ).decode("utf-8", errors="replace").splitlines()
