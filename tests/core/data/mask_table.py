"""What is trained with the templates of the model families: their conversations as text, the trained tokens marked.

`python -m tests.core.data.mask_table` writes `assets/masks.md`, which a test compares.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from core.data.records import Record
from core.data.template import tokenize
from core.data.tokenized import TokenizedExample
from core.errors import DatasetError
from tests.core.data.conftest import tokenizer_of
from tests.core.data.test_template_masks import CHATS, FAMILIES, IM, QWEN3, TOOL_FAMILIES, Family, record, with_tools

TABLE = Path(__file__).resolve().parents[3] / "assets" / "masks.md"
CASES = {"one turn": "single", "with a system message": "system", "several turns": "multi"}
TOOLS, CUT = "with tools", "several turns, cut"
CUT_TO = 0.8  # of the tokens of several turns
HEAD = """# What is trained, family by family

Written by `python -m tests.core.data.mask_table` and compared by a test. Each family's turn format, with a small
tokenizer of its kind; `⟦...⟧` holds the trained tokens, `⏎` is a line end. They are the assistant's words and the token
that ends its turn, and nothing else; a cut takes them away from the end. Tool calls are trained, a tool's results not.

"""


def families() -> dict[str, tuple[Family, Family | None]]:
    """Each family, and the same with tools where its template knows them."""
    found = dict(FAMILIES) | {"qwen3": Family(IM, QWEN3, "<|im_end|>", None, "<|im_end|>")}
    tools = {"qwen2.5": "qwen", "llama3": "llama3", "mistral": "mistral"}
    return {name: (one, TOOL_FAMILIES[tools[name]][0] if name in tools else None) for name, one in found.items()}


def examples(plain: Family, with_calls: Family | None) -> dict[str, tuple[TokenizedExample | str, str]]:
    """By case: the example, or why there is none, and its text as the table shows it."""
    tokenizer, found = _tokenizer(plain), {}
    for case, name in CASES.items():
        found[case] = _tried(record(CHATS[name]), tokenizer)
    whole = found["several turns"][0]
    if isinstance(whole, TokenizedExample):
        found[CUT] = _tried(record(CHATS["multi"]), tokenizer, int(CUT_TO * len(whole.input_ids)))
    if with_calls is not None:
        found[TOOLS] = _tried(with_tools(), _tokenizer(with_calls))
    return found


def _tokenizer(family: Family) -> PreTrainedTokenizerBase:
    return tokenizer_of(family.specials, family.template, family.eos, family.bos, kind=family.kind)


def _tried(record: Record, tokenizer: PreTrainedTokenizerBase, length: int = 0) -> tuple[TokenizedExample | str, str]:
    try:
        example = tokenize(record, tokenizer, length)
    except DatasetError as error:
        return error.what, ""
    pairs = zip(example.input_ids, example.loss_mask, strict=True)
    shown = ""
    for is_trained, run in groupby(pairs, key=lambda pair: pair[1]):
        text = tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False)
        shown += f"⟦{text}⟧" if is_trained else text
    return example, shown.replace("\n", "⏎")


def table() -> str:
    """The whole document."""
    cases = [*CASES, CUT, TOOLS]
    made = {name: examples(*pair) for name, pair in families().items()}
    rows = [f"| family | {' | '.join(cases)} |", "|---" * (len(cases) + 1) + "|"]
    for name, found in made.items():
        rows.append(f"| [{name}](#{name.replace('.', '')}) | {' | '.join(_count(found.get(case)) for case in cases)} |")
    text = HEAD + "Trained tokens of all tokens:\n\n" + "\n".join(rows) + "\n"
    for name, found in made.items():
        text += f"\n## {name}\n"
        for case, (example, shown) in found.items():
            text += f"\n{case}:\n" + (
                f"refused: {example}\n" if isinstance(example, str) else f"```text\n{shown}\n```\n"
            )
    return text


def _count(found: tuple[TokenizedExample | str, str] | None) -> str:
    if found is None:
        return ""
    example = found[0]
    return "refused" if isinstance(example, str) else f"{example.n_trained} of {len(example.input_ids)}"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
    sys.stdout.write(f"{TABLE.name} is written\n")
