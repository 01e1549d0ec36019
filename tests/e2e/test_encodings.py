"""A table that a Chinese Excel saved: the page asks for its encoding, and its rows arrive as they were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e.conftest import RunningStudio
from tests.e2e.test_main_job import open_page, open_tab

TABLE = "question,answer\n订单在哪里？,请在“我的订单”里查看。\n怎么退货？,七天内可以退货。\n"


def test_a_gbk_table_is_added_once_its_encoding_is_picked(page: Any, studio: RunningStudio, tmp_path: Path) -> None:
    path = tmp_path / "客服.csv"
    path.write_bytes(TABLE.encode("gbk"))
    open_page(page, studio.url)
    open_tab(page, "Datasets")
    page.set_input_files("#dataset-file input[type=file]", str(path))
    page.wait_for_selector("#dataset-encoding input", timeout=120_000)
    assert "is not UTF-8" in page.inner_text("#dataset-message")
    page.click("#dataset-encoding input")
    choice = page.get_by_role("option", name="GBK")
    choice.wait_for()
    assert choice.evaluate("each => getComputedStyle(each).justifyContent") == "flex-start", "choices begin at the left"
    choice.click()
    page.wait_for_function("document.querySelector('#dataset-add')?.innerText.includes('2 rows')", timeout=120_000)
    assert not page.inner_text("#dataset-message").strip()
    page.click("#dataset-add")
    page.wait_for_selector("#dataset-preview >> text=七天内可以退货。", timeout=120_000)
    dataset = studio.cli("datasets", "list")["datasets"][0]  # the newest
    assert (dataset["name"], dataset["rows"]) == ("客服", 2)
    again = studio.cli("datasets", "add", str(path), "--name", "客服 2", "--encoding", "gb18030")
    assert again["rows"] == 2 and not page.locator("#dataset-encoding input").is_visible()
