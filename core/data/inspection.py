"""What is worth a second look in rows that can be trained on. Torch-free."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from core.data.problems import WARNING, Problem, excerpt
from core.data.records import Record

LONG_CHARACTERS = 50_000  # about 12,000 tokens of English

# C0 and C1 controls but tab and line ends, and the mark that a text was decoded wrongly
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")
# what it is -> its beginning, which is quick to look for, and its whole
_SECRETS = {
    "a Hugging Face token": ("hf_", re.compile(r"\bhf_[A-Za-z0-9]{30,}")),
    "an OpenAI or Anthropic key": ("sk-", re.compile(r"\bsk-(?:proj-|ant-|svcacct-)?[A-Za-z0-9_-]{20,}")),
    "a GitHub token": ("ghp_", re.compile(r"\bghp_[A-Za-z0-9]{36,}")),
    "a GitHub app token": ("ghs_", re.compile(r"\bghs_[A-Za-z0-9]{36,}")),
    "a GitHub login token": ("gho_", re.compile(r"\bgho_[A-Za-z0-9]{36,}")),
    "a GitHub access token": ("github_pat_", re.compile(r"\bgithub_pat_[A-Za-z0-9_]{22,}")),
    "an AWS key": ("AKIA", re.compile(r"\bAKIA[A-Z0-9]{16}\b")),
    "a Google key": ("AIza", re.compile(r"\bAIza[A-Za-z0-9_-]{35}")),
    "a Slack token": ("xox", re.compile(r"\bxox[abeprs]-[A-Za-z0-9-]{10,}")),
    "a private key": ("PRIVATE KEY", re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")),
}


def secret_in(text: str) -> str:
    """What kind of secret a text seems to hold; "" for none."""
    found = (kind for kind, (start, whole) in _SECRETS.items() if start in text and whole.search(text))
    return next(found, "")


class Inspector:
    """Finds warnings in records one after the other; it remembers a digest of each, to tell copies."""

    def __init__(self) -> None:
        self._first_rows: dict[bytes, int] = {}

    def warnings(self, record: Record) -> Iterator[Problem]:
        """The warnings of one record."""
        text = record.whole
        bare = text.replace("\x1e", " ").replace("\x1f", " ") if record.messages else text
        for kind, detail in self._findings(record, text, bare):
            shown = "(not shown)" if secret_in(bare[:200]) else excerpt(bare)
            yield Problem(record.row, kind, WARNING, detail, shown)

    def _findings(self, record: Record, text: str, bare: str) -> Iterator[tuple[str, str]]:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        first = self._first_rows.setdefault(digest, record.row)
        if first != record.row:
            yield "duplicate", f"The row is the same as row {first:,}."
        if control := _CONTROLS.search(bare):
            yield "control_characters", f"The text holds the character U+{ord(control.group()):04X}, which is no text."
        if len(bare) > LONG_CHARACTERS:
            yield "over_long", f"The row has {len(bare):,} characters; what does not fit the maximum length is cut."
        if kind := secret_in(bare):
            yield "suspected_secret", f"The text seems to hold {kind}, which a model would learn by heart."
        if record.messages and record.messages[-1].role != "assistant":
            yield "unanswered", "The last turn has no answer and is left out."
