import logging
from pathlib import Path

import pytest

from studio.log import HIDDEN, log_to_file, redact, tail


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("token hf_abcdefghijklmnopqrstuvwx here", f"token {HIDDEN} here"),
        ("Authorization: Bearer abcdef123456.x-y", f"Authorization: Bearer {HIDDEN}"),
        ("GET /?token=abc123&x=1", f"GET /?token={HIDDEN}&x=1"),
        ("https://me:secret@host/simple", f"https://{HIDDEN}@host/simple"),
        ("value s3cr3t-of-mine!", f"value {HIDDEN}!"),
        ("nothing to hide: hf_short, https://host:80/x", "nothing to hide: hf_short, https://host:80/x"),
    ],
)
def test_secrets_are_hidden(text: str, left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-of-mine")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    assert redact(text) == left


def test_a_traceback_in_the_log_is_redacted_too(tmp_path: Path) -> None:
    path = tmp_path / "studio.log"
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        log_to_file(path)
        try:
            raise ValueError("hf_abcdefghijklmnopqrstuvwx")
        except ValueError:
            logging.getLogger("test").exception("failed with %s", "hf_zyxwvutsrqponmlkjihgf")
        for handler in root.handlers:
            handler.close()
    finally:
        root.handlers[:], root.level = handlers, level
    text = path.read_text()
    assert "ValueError" in text
    assert text.count(HIDDEN) == 3  # the message, the line of source, the exception
    assert "hf_" not in text


def test_tail_gives_whole_lines_of_the_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert tail(path) == ""
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    assert tail(path, 30) == "line 997\nline 998\nline 999\n"
    path.write_bytes(b"10 %\r50 %\r100 %\ndone\r\n\xff\n")
    assert tail(path) == "100 %\ndone\n�\n"
