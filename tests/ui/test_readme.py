"""The READMEs say of the methods what the registry says, in both languages."""

from __future__ import annotations

from pathlib import Path

from core.methods.__main__ import markdown
from ui.i18n import Translator

ROOT = Path(__file__).parents[2]
ZH = ("方法", "名称", "做什么", "论文", "可合并")


def test_the_readmes_have_the_table_of_methods() -> None:
    assert markdown() in (ROOT / "README.md").read_text(encoding="utf-8"), "python -m core.methods writes it"
    table = markdown(Translator("zh").sentence, ZH, ("是", "否"))
    assert table in (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
