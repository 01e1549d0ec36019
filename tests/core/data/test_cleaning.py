"""Every kind of problem with every action that it allows; copies, languages, secrets, and columns under other names."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data import duplicates, languages, turns
from core.data.dataset import load_dataset
from core.data.duplicates import DigestTable, Duplicates
from core.data.languages import language_of
from core.data.mapping import lookup, mapped, paths_in
from core.data.problems import KINDS, Problem, RowError
from core.data.recipe import Recipe
from core.data.record_file import RecordFile, RecordWriter
from core.data.records import Message, Record, ToolCall
from core.data.scan import SHOWN_PROBLEMS, Scan
from core.data.sensitive import personal_data_in, without_personal_data, without_secrets
from core.errors import DatasetError
from tests.core.data.format_samples import said


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def written(folder: Path, *rows: Any, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


U, A = ("user", "What is it?"), ("assistant", "A bird.")
TOKEN = "hf_" + "a" * 34
GOOD = chat(("user", "Good?"), ("assistant", "Yes."))
LONG = " ".join(f"word{number}" for number in range(40))
Turns = list[tuple[str, str]]

# kind -> a row that has the problem (after GOOD), and what fixing makes of it
CASES: dict[str, tuple[Any, Turns | None]] = {
    "bad_json": ('{"messages": [', None),
    "wrong_type": ({"messages": 7}, None),
    "missing_field": ({"messages": None}, None),
    "no_assistant": (chat(U), None),
    "empty_answer": (chat(U, A, ("user", "And?"), ("assistant", " ")), [U, A]),
    "role_order": (
        chat(("assistant", "Hi."), U, ("user", "Tell me."), A, ("system", "S"), ("assistant", "Or a plane.")),
        [("system", "S"), ("user", "What is it?\n\nTell me."), ("assistant", "A bird.\n\nOr a plane.")],
    ),
    "duplicate": (GOOD, None),
    "near_duplicate": (chat(("user", "GOOD"), ("assistant", "yes!")), None),
    "over_long": (chat(U, ("assistant", "x" * 60_000)), None),
    "control_characters": (chat(U, ("assistant", "A\x07 bird.\x00")), [U, ("assistant", "A bird.")]),
    "suspected_secret": (chat(U, ("assistant", f"It is {TOKEN}.")), [U, ("assistant", "It is [removed].")]),
    "personal_data": (chat(("user", "I am ann@firm.com"), A), [("user", "I am [removed]"), A]),
    "unanswered": (chat(U, A, U), None),
    "rated_bad": (chat(U, A) | {"label": False}, None),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_every_action_does_what_it_says(tmp_path: Path, kind: str) -> None:
    row, fixed = CASES[kind]
    path = written(tmp_path, GOOD, row)
    assert ("fix" in KINDS[kind].actions) == (fixed is not None) or kind == "wrong_type"
    for action in KINDS[kind].actions:
        recipe = Recipe(actions={kind: action})
        if action == "stop":
            with pytest.raises(DatasetError, match=r"Line 2 of a\.jsonl"):
                load_dataset(path, recipe=recipe)
            continue
        dataset = load_dataset(path, recipe=recipe)
        read = [[said(turn) for turn in record.messages] for record in dataset.records]
        assert dataset.counts == {kind: 1} and [problem.kind for problem in dataset.problems] == [kind]
        expected = {"skip": 1, "keep": 2, "fix": 2 if fixed else 1}[action]
        assert len(read) == expected, action
        if action == "fix" and fixed:
            assert read[1] == fixed


def test_numbers_are_written_out_where_that_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, {"text": "a", "label": 0.5}, {"text": "b", "label": True}, {"text": "c", "label": ["d"]})
    dataset = load_dataset(path, recipe=Recipe(actions={"wrong_type": "fix"}))
    assert [record.messages[1].content for record in dataset.records] == ["0.5", "True"]
    assert dataset.counts == {"wrong_type": 3}


def test_a_row_that_cannot_be_mended_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, chat(U, ("assistant", "")))
    dataset = load_dataset(path, recipe=Recipe(actions={"empty_answer": "fix"}).skipping_errors())
    assert len(dataset) == 1 and dataset.counts == {"no_assistant": 1}


def test_answers_that_are_marked_as_bad_are_left_out(tmp_path: Path) -> None:
    """Rows of feedback, as for KTO; a label of a text is an answer, and one that is no yes or no marks nothing."""
    good, bad, other = ({"prompt": f"p{label}", "completion": "c", "label": label} for label in (True, False, "spam"))
    dataset = load_dataset(written(tmp_path, good, bad, other))
    assert [record.row for record in dataset.records] == [1, 3] and dataset.counts == {"rated_bad": 1}
    with pytest.raises(DatasetError, match=r"No row of b\.jsonl can be used\. Line 1 .*'label' says false"):
        load_dataset(written(tmp_path, bad, name="b.jsonl"))
    table = tmp_path / "c.csv"
    table.write_text("prompt,response,kto_tag\na,b,True\nc,d,False\n", "utf-8")
    assert [record.row for record in load_dataset(table).records] == [2]
    labels = load_dataset(written(tmp_path, {"text": "t", "label": "False"}, name="d.jsonl"))
    assert labels.records[0].messages[1].content == "False" and not labels.counts


@pytest.mark.parametrize(("kind", "action"), [("duplicate", "fix"), ("bad_json", "keep"), ("nonsense", "skip")])
def test_impossible_actions_are_refused(kind: str, action: str) -> None:
    with pytest.raises(DatasetError, match=kind):
        Recipe(actions={kind: action})


def test_a_million_problems_are_counted_and_a_few_shown(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, *["{broken"] * 700, *[GOOD] * 300)
    dataset = load_dataset(path, skip_bad_rows=True)
    assert dataset.counts == {"bad_json": 700, "duplicate": 300}
    assert len(dataset.problems) == 2 * SHOWN_PROBLEMS
    rows = [problem.row for problem in dataset.problems]
    assert rows == sorted(rows)


# -- copies


def varied(words: list[str], changes: int, draw: random.Random) -> list[str]:
    changed = list(words)
    for place in draw.sample(range(len(words)), changes):
        changed[place] = f"other{place}"
    return changed


def test_near_copies_are_found_and_different_rows_are_not() -> None:
    draw = random.Random(5)
    words = [
        f"{start}{end}" for start in ("ka", "tol", "mire", "sun", "ban") for end in ("lor", "net", "x", "dom", "ash")
    ]
    found = {1: 0, 2: 0, 60: 0}
    for changes in found:
        for _ in range(60):
            duplicates, text = Duplicates(), draw.choices(words, k=120)
            first = Record(1, (Message("user", "Go on."), Message("assistant", " ".join(text))))
            other = Record(2, (Message("user", "Go on."), Message("assistant", " ".join(varied(text, changes, draw)))))
            assert duplicates.find(first) == ("", "")
            found[changes] += duplicates.find(other)[0] == "near_duplicate"
    assert found[1] >= 54 and found[2] >= 54 and found[60] == 0, found


def test_many_questions_about_one_passage_are_no_copies() -> None:
    duplicates, passage = Duplicates(), LONG * 5
    for number, (question, answer) in enumerate([("Who?", "Ann"), ("Where?", "Rome"), ("When?", "Today")], 1):
        record = Record(number, (Message("user", f"{passage}\n\n{question}"), Message("assistant", answer)))
        assert duplicates.find(record)[0] == ""


def test_a_system_message_that_all_rows_share_makes_no_copies() -> None:
    duplicates = Duplicates()
    for number, word in enumerate(("red", "green", "blue"), 1):
        turns = (Message("system", LONG * 3), Message("user", f"The colour {word}"), Message("assistant", word))
        assert duplicates.find(Record(number, turns))[0] == ""


def test_the_first_of_the_copies_is_named_with_its_file(tmp_path: Path) -> None:
    one = written(tmp_path, chat(U, A), GOOD, name="one.jsonl")
    two = written(
        tmp_path, {"prompt": "Good?", "completion": "Yes."}, {"prompt": "p", "completion": "c"}, name="two.jsonl"
    )
    dataset = load_dataset([one, two])
    assert [(problem.row, problem.file, problem.detail) for problem in dataset.problems] == [
        (1, "two.jsonl", "The row is the same as row 2 of one.jsonl.")
    ]
    assert dataset.format == "messages + prompt_completion" and len(dataset) == 4
    assert [record.file for record in dataset.records] == ["one.jsonl"] * 2 + ["two.jsonl"] * 2


def test_digests_are_kept_through_growth() -> None:
    table, draw = DigestTable(), random.Random(1)
    digests = [draw.getrandbits(64) for _ in range(10_000)] + [0]
    assert [table.first(digest, number) for number, digest in enumerate(digests)] == list(range(10_001))
    assert [table.first(digest, 77) for digest in digests] == list(range(10_001))


# -- several files


def test_files_of_the_same_name_or_of_mixed_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    one, two = written(tmp_path, GOOD), written(tmp_path / "x", GOOD)
    with pytest.raises(DatasetError, match="same name"):
        load_dataset([one, two])
    pair = written(tmp_path, {"prompt": "p", "chosen": "a", "rejected": "b"}, name="pair.jsonl")
    with pytest.raises(DatasetError, match="cannot be mixed"):
        load_dataset([one, pair])
    with pytest.raises(DatasetError, match="No file"):
        load_dataset([])


def test_an_error_in_the_second_file_names_it(tmp_path: Path) -> None:
    one, two = written(tmp_path, GOOD), written(tmp_path, chat(U, A), "{", name="b.jsonl")
    with pytest.raises(DatasetError, match=r"Line 2 of b\.jsonl"):
        load_dataset([one, two])
    assert load_dataset([one, two], skip_bad_rows=True).problems[0] == Problem(
        2, "bad_json", "error", "Column 3: expecting property name enclosed in double quotes.", "{ ", "b.jsonl"
    )


# -- languages, secrets and people


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat is on the mat, and it is not happy with you.", "English"),
        ("Je ne sais pas où est le chat, mais il est dans la maison.", "French"),
        ("Ich weiß nicht, wo die Katze ist, und das ist ein Problem.", "German"),
        ("今天天气怎么样？我想去公园。", "Chinese"),
        ("今日は天気がいいですね。", "Japanese"),
        ("오늘 날씨가 좋네요", "Korean"),
        ("Привет, как дела?", "Russian or another in Cyrillic"),
        ("positive", ""), ("42", ""), ("def f(x): return x", ""), ("Tel. 089 - 好", ""),
    ],
)  # fmt: skip
def test_languages(text: str, language: str) -> None:
    assert language_of(text) == language


def test_rows_in_another_language_are_a_hint(tmp_path: Path) -> None:
    asked, told = "What is the number {} and what is it for?", "It is the {} of the day and of the week."
    english = [chat(("user", asked.format(n)), ("assistant", told.format(n))) for n in range(60)]
    strange = [chat(("user", "今天天气怎么样？我想去公园。"), ("assistant", "今天天气很好，适合去公园。"))]
    dataset = load_dataset(written(tmp_path, *english, *strange))
    found = [problem for problem in dataset.problems if problem.kind == "mixed_language"]
    assert [(problem.row, problem.detail) for problem in found] == [(61, "The row is in Chinese; most are in English.")]
    half = load_dataset(written(tmp_path, *english, *strange * 40, name="half.jsonl"))
    assert "mixed_language" not in half.counts  # that many are meant to be there


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to ann.lee+x@mail.firm.co.uk today", "an e-mail address"),
        ("my card 4111 1111 1111 1111", "a card number"),
        ("5500-0055-5555-5559", "a card number"),
        ("ann@example.com and bob@mail.test", ""),
        ("4111 1111 1111 1112", ""), ("order 1234567812345670", ""), ("pi 3.141592653589793", ""), ("a@b", ""),
    ],
)  # fmt: skip
def test_personal_data(text: str, kind: str) -> None:
    assert personal_data_in(text) == kind
    cleaned = without_personal_data(text)
    assert personal_data_in(cleaned) == "" and ("[removed]" in cleaned) == bool(kind)


def test_whole_private_keys_are_removed() -> None:
    text = "a -----BEGIN RSA PRIVATE KEY-----\nMIIabc+/=\n-----END RSA PRIVATE KEY----- b"
    assert without_secrets(text) == "a [removed] b"


# -- columns


def test_paths_lead_through_objects_and_lists() -> None:
    row = {"data": {"q": "ask", "answers": [{"text": "say"}]}, "a.b": 1, "n": None}
    assert lookup(row, "data.answers.0.text") == "say" and lookup(row, "a.b") == 1
    assert mapped(row, {"prompt": "data.q", "completion": "data.answers.0.text", "system": "data.none", "x": ""}) == {
        **row, "prompt": "ask", "completion": "say",
    }  # fmt: skip
    assert paths_in([{"n": None}, row])["data.answers.0.text"] == "say"
    assert {"data", "data.q", "data.answers", "data.answers.0", "a.b", "n"} <= paths_in([row]).keys()
    assert mapped({"text": "t", "body": "b"}, {"text": "body"}) == {"text": "b", "body": "b"}


def test_nested_columns_are_read_by_mapping(tmp_path: Path) -> None:
    path = written(tmp_path, *({"item": {"q": f"ask {n}", "a": [f"say {n}"]}, "id": n} for n in range(5)))
    with pytest.raises(DatasetError, match="columns are not known"):
        load_dataset(path)
    recipe = Recipe(columns={"prompt": "item.q", "completion": "item.a.0"})
    dataset = load_dataset(path, recipe=recipe)
    assert dataset.format == "prompt_completion" and dataset.share == 1.0
    assert said(dataset.records[2].messages[1]) == ("assistant", "say 2")
    swapped = Recipe("prompt_completion", {"prompt": "item.a.0", "completion": "item.q"})
    assert said(load_dataset(path, recipe=swapped).records[2].messages[1]) == ("assistant", "ask 2")


# -- records on disk


def test_records_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    asked, good = Message("user", "q"), Message("assistant", "a")
    call = Message("assistant", "", (ToolCall("f", '{"x": 1}', "id1"),))
    records = [
        Record(1, (Message("user", "好\u2028\n"), Message("assistant", "b"))),
        Record(5, text="plain", file="b.csv"),
        Record(
            9,
            (asked, call, Message("tool", "r", name="f", call_id="id1"), good),
            tools='[{"type": "function", "function": {"name": "f"}}]',
        ),
        Record(10, (asked, good), rejected=(asked, Message("assistant", "b"))),
    ]
    path = tmp_path / "records.jsonl"
    with RecordWriter(path) as writer:
        for record in records:
            writer.add(record)
    stored = RecordFile(path)
    assert list(stored) == records and [stored[n] for n in range(4)] == records
    assert stored[1:3] == records[1:3] and stored[-1] == records[-1] and len(stored) == 4
    assert stored.sha256() == writer.sha256
    with pytest.raises(IndexError):
        stored[4]
    again = load_dataset(path, skip_bad_rows=True).records  # any tool for chat data reads it
    assert again[0].messages == records[0].messages and again[1].messages == records[2].messages
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DatasetError, match="damaged"):
        RecordFile(path)


def test_the_same_files_and_recipe_give_the_same_records(tmp_path: Path) -> None:
    rows = [chat(("user", f"q{n % 40}"), ("assistant", f"a{n % 40}\x07")) for n in range(100)]
    path = written(tmp_path, *rows, "{broken")
    recipe = Recipe(actions={"duplicate": "skip", "control_characters": "fix", "bad_json": "skip"})
    sums = set()
    for name in ("one", "two"):
        with RecordWriter(tmp_path / f"{name}.jsonl") as writer:
            for verdict in Scan([path], recipe):
                if verdict.record is not None:
                    writer.add(verdict.record)
        assert writer.count == 40
        sums.add(writer.sha256)
    assert len(sums) == 1


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(max_codepoint=127), max_size=80))
def test_texts_in_ascii_are_read_as_all_others_are(text: str) -> None:
    assert duplicates._plain(text) == duplicates._BETWEEN.sub(" ", text.casefold()).strip()
    beyond = text + " \N{LATIN SMALL LETTER SHARP S}"  # a word of its own, and no language's
    assert languages._by_words(text) == languages._by_words(beyond)
    assert set(text.lower().translate(languages._ASCII_WORDS).split()) == set(languages._WORD.findall(text.lower()))


TURN_KEYS = st.sampled_from(["role", "content", "tool_calls", "function_call", "name"])
TURN_VALUES = st.one_of(st.none(), st.sampled_from(["user", "assistant", " User", "tool", ""]), st.lists(st.none()))


@given(turn=st.dictionaries(TURN_KEYS, TURN_VALUES))
def test_plain_turns_are_read_as_all_others_are(turn: dict[str, Any]) -> None:
    def outcome() -> Any:
        try:
            return turns.read_turns([turn], "role", "content")
        except RowError as error:
            return error.kind, error.detail

    quick = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "_PLAIN", ())
        assert outcome() == quick
