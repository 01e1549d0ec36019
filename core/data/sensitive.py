"""Secrets and personal data in texts: a hint, since only the user knows what is meant to be there. Torch-free."""

from __future__ import annotations

import re

REMOVED = "[removed]"

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
    "a private key": (
        "PRIVATE KEY",
        re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----(?:[^-]*-----END (?:[A-Z]+ )*PRIVATE KEY-----)?"),
    ),
}
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){0,4}\.[A-Za-z]{2,12}\b")
_CARD = re.compile(r"(?<![\d.,-])\d{4}[ -]?\d{4}[ -]?\d{4}[ -]?\d{1,7}(?![\d.,-]?\d)")
_EIGHT_DIGITS = re.compile(r"\d{4}[ -]?\d{4}")  # quick to look for
_RESERVED = re.compile(r"@(?:[\w-]+\.)*example\.|\.(?:example|invalid|test)$", re.IGNORECASE)  # RFC 2606: nobody's


def secret_in(text: str) -> str:
    """What kind of secret a text seems to hold; "" for none."""
    found = (kind for kind, (start, whole) in _SECRETS.items() if start in text and whole.search(text))
    return next(found, "")


def personal_data_in(text: str) -> str:
    """What kind of personal data a text seems to hold; "" for none."""
    if "@" in text and any(not _RESERVED.search(match.group()) for match in _EMAIL.finditer(text)):
        return "an e-mail address"
    if not _EIGHT_DIGITS.search(text):
        return ""
    return "a card number" if any(_is_card(match.group()) for match in _CARD.finditer(text)) else ""


def without_secrets(text: str) -> str:
    """The text with `[removed]` in place of every secret."""
    for start, whole in _SECRETS.values():
        text = whole.sub(REMOVED, text) if start in text else text
    return text


def without_personal_data(text: str) -> str:
    """The text with `[removed]` in place of e-mail addresses and card numbers."""
    text = _EMAIL.sub(lambda match: match.group() if _RESERVED.search(match.group()) else REMOVED, text)
    return _CARD.sub(lambda match: REMOVED if _is_card(match.group()) else match.group(), text)


def _is_card(text: str) -> bool:
    """The check digit is right (Luhn's algorithm, ISO/IEC 7812-1), and the first digit is one that cards have."""
    digits = [int(char) for char in text if char.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) if place % 2 else digit for place, digit in enumerate(reversed(digits)))
    return 13 <= len(digits) <= 19 and digits[0] in (3, 4, 5, 6) and sum(doubled) % 10 == 0
