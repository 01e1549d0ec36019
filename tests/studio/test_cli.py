"""The command line as a user meets it: real processes, real exit codes, and a toy model that really trains."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig, to_dict
from core.errors import ConfigError, StudioError
from core.methods import listed
from studio.cli import run
from studio.commands.flags import train_config
from studio.commands.terminal import duration, find, plain, size
from tests.toy import save_model, write_dataset

LORA_STUDIO = [sys.executable, "-P", "-m", "ui.main"]
TRAIN = ("train", "--model", "toy", "--dataset", "animals", "--rank", "4", "--epochs", "1", "--batch-size", "16")


class Cli:
    """Runs commands on one workspace: in this process, which is quicker, or in one of their own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, *arguments: str | Path, code: int = 0) -> tuple[str, str]:
        out, errors = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(errors), pytest.raises(SystemExit) as ended:
            run([*map(str, arguments), "--workspace", str(self.root)])
        assert (ended.value.code or 0) == code, (
            f"{arguments}: {ended.value.code}\n{out.getvalue()}\n{errors.getvalue()}"
        )
        return out.getvalue(), errors.getvalue()

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start a command in a process of its own."""
        environment = os.environ | {"LORA_STUDIO_HOME": str(self.root), "OMP_NUM_THREADS": "1"}
        command = [*LORA_STUDIO, *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def json(self, *arguments: str | Path, code: int = 0) -> Any:
        """The one JSON object that a command writes."""
        return json.loads(self(*arguments, "--json", code=code)[0])

    def refuses(self, *arguments: str | Path) -> str:
        """What a command says when it refuses: always what is wrong and what to do."""
        process = self.start(*arguments)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2, said
        assert re.fullmatch(r"Error: [^\n]+\nFix: [^\n]+\n", said), said
        return said


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A workspace with a toy model and a dataset."""
    folder = tmp_path_factory.mktemp("cli")
    made = Cli(folder / "workspace")
    save_model(folder / "toy")
    made("models", "add", folder / "toy")
    made("datasets", "add", write_dataset(folder / "animals.jsonl"))
    yield made
    made("stop")


@pytest.fixture(scope="module")
def trained(cli: Cli) -> dict[str, Any]:
    """A finished training job."""
    job: dict[str, Any] = cli.json(*TRAIN, "--name", "sounds")
    return job


# -- speed


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, ui.main, studio.cli\n"
        "heavy = ('torch', 'transformers', 'sqlalchemy', 'gradio', 'pandas', 'datasets', 'fastapi', 'rich')\n"
        "sys.stdout.write(str([name for name in heavy if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]"


def test_help_takes_under_half_a_second() -> None:
    """Of processor time, best of five: what else this machine does must not decide."""
    spent, elapsed = [], []
    for _ in range(5):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run([*LORA_STUDIO, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        elapsed.append(time.monotonic() - started)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    sys.stdout.write(f"lora-studio --help: {min(spent):.2f} s of processor time, {min(elapsed):.2f} s\n")
    assert min(spent) < 0.5


def test_every_command_has_help_and_json() -> None:
    help_text = subprocess.run([*LORA_STUDIO, "--help"], capture_output=True, text=True, check=True).stdout
    groups = {
        "jobs": "list show logs cancel pause resume stop",
        "models": "list add show delete",
        "datasets": "list add show delete",
        "adapters": "list show",
    }
    single = "serve train merge export generate compare doctor setup demo stop"
    commands = [[name] for name in single.split()]
    commands += [[group, name] for group, names in groups.items() for name in names.split()]
    assert all(command[0] in help_text for command in commands)
    from typer.testing import CliRunner

    from ui.main import app

    for command in commands:
        shown = CliRunner().invoke(app, [*command, "--help"]).output
        assert "--json" in shown and "--workspace" in shown, command


# -- flags


def test_flags_carry_every_setting_of_the_configs() -> None:
    from typer.testing import CliRunner

    from ui.main import app

    shown = CliRunner().invoke(app, ["train", "--help"], terminal_width=200).output
    for values in (to_dict(TrainConfig()), to_dict(AdapterConfig()), to_dict(OptimConfig()), to_dict(DataConfig())):
        for name in set(values) - {"adapter", "optim", "data"}:
            assert f"--{name.replace('_', '-')}" in shown, name


def test_only_given_flags_override_a_job_file() -> None:
    base = TrainConfig(epochs=7.0, adapter=AdapterConfig(r=8, target_modules=("q_proj",)))
    made = train_config({"r": 32, "epochs": None, "use_rslora": True, "rank_pattern": "q_proj=4,v_proj=2"}, base)
    assert (made.epochs, made.adapter.r, made.adapter.use_rslora) == (7.0, 32, True)
    assert made.adapter.target_modules == ("q_proj",) and made.adapter.rank_pattern == {"q_proj": 4, "v_proj": 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all-linear", "all-linear"),
        ("q_proj", ("q_proj",)),
        ("q_proj,v_proj", ("q_proj", "v_proj")),
        (r".*layers\.[01]\..*q_proj", r".*layers\.[01]\..*q_proj"),
    ],
)
def test_target_modules_are_names_or_an_expression(text: str, expected: str | tuple[str, ...]) -> None:
    assert train_config({"target_modules": text}, TrainConfig()).adapter.target_modules == expected


@pytest.mark.parametrize(("written", "rate"), [("1e-4", 1e-4), ("2.5E-04", 2.5e-4), ("0.001", 1e-3)])
def test_a_job_file_has_numbers_as_people_write_them(written: str, rate: float) -> None:
    from studio.spec import from_yaml

    spec = from_yaml(f"name: 1e-4b\nmodel: m\ndataset: d\ntrain: {{optim: {{learning_rate: {written}}}}}")
    assert spec["train"].optim.learning_rate == rate and spec["name"] == "1e-4b"


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ("- a\n- b", "holds no settings"),
        ("name: [a]", r"name is \['a'\], which is not a text"),
        ("model: {a: b}", r"model is \{'a': 'b'\}, which is not a text"),
        ("dataset: true", "dataset is True, which is not a text"),
        ("train: 5", "train is 5"),
        ("train: [1]", r"train is \[1\]"),
        ("train: {5: 3}", "no setting 5"),
        ("name: a\ntrain: {epochs: 2024-13-45}", "not valid YAML"),
        (f"name: {'9' * 5000}", "not valid YAML"),
        ("train: {epochs: &a [*a]}", r"epochs is \[\[...\]\], which is not a number"),
        (f"train: {{epochs: {'x' * 5000}}}", r"epochs is 'x{79}\.\.\., which"),
    ],
)
def test_a_job_file_of_wrong_types_is_refused_by_name(job: str, says: str) -> None:
    from studio.spec import from_yaml

    with pytest.raises(ConfigError, match=says):
        from_yaml(job)


def test_changes_and_pairs_are_read_as_in_a_job_file() -> None:
    from studio.commands.jobs import _change

    assert _change("optim.learning_rate=1e-4") == ("optim.learning_rate", 1e-4)
    for wrong in ("a=[", "a=2024-13-45"):
        with pytest.raises(ConfigError, match="cannot be read"):
            _change(wrong)
        with pytest.raises(ConfigError, match="cannot be read"):
            train_config({"method_options": wrong}, TrainConfig())


def test_a_pair_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank-pattern"):
        train_config({"rank_pattern": "q_proj"}, TrainConfig())


# -- mistakes: a sentence that says what to do, exit code 2, no traceback


def _write(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("broken.jsonl", b'{"question": "a", "answer": "b"}\n{"question": "a", \n', "2"),
        ("empty.jsonl", b"", "empty"),
        ("latin.csv", "text,label\nr\xe9sum\xe9,good\n".encode("latin-1") * 3, "UTF-8"),
        ("columns.csv", b"colour,shape\nred,round\nblue,square\n", "colour"),
    ],
)
def test_a_bad_file_is_refused_with_a_remedy(cli: Cli, tmp_path: Path, name: str, content: bytes, says: str) -> None:
    assert says in cli.refuses("datasets", "add", _write(tmp_path, name, content))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--model", "missing"), "missing"),
        (("--dataset", "missing"), "missing"),
        (("--dataset", "missing.jsonl"), "missing.jsonl"),
        (("--rank", "0"), "r is 0"),
        (("--rank", "33"), "33"),
        (("--target-modules", "nothing_like_it"), "match no layer"),
        (("--lr", "-1"), "learning_rate is -1"),
        (("--config", "missing.yaml"), "missing.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_bad_setting_is_refused_with_a_remedy(cli: Cli, flags: Sequence[str], says: str) -> None:
    assert says in cli.refuses(*TRAIN, *flags)


def test_an_unknown_name_gets_a_suggestion_and_json_gets_the_error(cli: Cli) -> None:
    assert "Did you mean 'toy'?" in cli.refuses("models", "show", "tyo")
    error = cli.json("models", "show", "tyo", code=2)["error"]
    assert "tyo" in error["what"] and "toy" in error["fix"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--rank", "many"), ("train", "--no-such-option"), ("jobs", "show"), ("nonsense",),
        ("queue", "move", "x", "sideways"), ("jobs", "list", "--limit", "0"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_command_line_is_json_too(cli: Cli, arguments: Sequence[str]) -> None:
    out, said = cli(*arguments, "--json", code=2)
    error = json.loads(out)["error"]
    assert error["what"] and "--help" in error["fix"] and "Usage: " in said
    assert cli(*arguments, code=2)[0] == ""


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--target-modules", "q_proj,nothing_like_it"), "target_modules 'nothing_like_it' matches no layer"),
        (("--modules-to-save", "nothing_like_it"), "modules_to_save 'nothing_like_it' matches no layer"),
        (("--multi-label",), "multi_label is for texts with labels"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_plan_refuses_what_the_run_would(cli: Cli, flags: Sequence[str], says: str) -> None:
    assert says in cli.refuses(*TRAIN, *flags)
    plan = cli.json(*TRAIN, *flags, "--plan", code=1)
    assert next(check["text"] for check in plan["checks"] if check["level"] == "error").startswith(says)


def test_names_that_fit_nothing_are_told(cli: Cli) -> None:
    flags = (
        "--exclude-modules",
        "layers.0,v_proj,lm_head",
        "--rank-pattern",
        "q_proj=2,v_proj=2",
        "--alpha-pattern",
        "typo=1",
    )
    warnings = [check["text"] for check in cli.json(*TRAIN, *flags, "--plan")["checks"] if check["level"] == "warning"]
    assert [text for text in warnings if "fits no layer" in text] == [
        "exclude_modules 'layers.0' fits no layer of this model: nothing is left out.",
        "rank_pattern 'v_proj' fits no layer with an adapter: it changes nothing.",
        "alpha_pattern 'typo' fits no layer with an adapter: it changes nothing.",
    ]
    said = cli(*TRAIN, "--exclude-modules", ".*typo.*", "--name", "told", "--no-wait")[1]
    assert "warning: exclude_modules '.*typo.*' fits no layer" in said
    cli("jobs", "cancel", "told")


def test_a_model_that_does_not_exist_fails_its_job_with_a_sentence(cli: Cli, tmp_path: Path) -> None:
    said = cli("models", "add", tmp_path / "no" / "model.gguf", code=2)[1]
    assert "Error: " in said and "Fix: " in said


# -- the main job


def test_training_reports_one_object_and_makes_an_adapter(cli: Cli, trained: dict[str, Any]) -> None:
    assert trained["state"] == "succeeded" and trained["step"] == trained["total_steps"] > 0
    adapters = cli.json("adapters", "list")["adapters"]
    assert [adapter["id"] for adapter in adapters] == [trained["result"]["adapter_id"]]
    shown = cli.json("adapters", "show", "sounds")
    assert shown["r"] == 4 and (Path(shown["folder"]) / "adapter_model.safetensors").is_file()
    assert "sounds" in cli("jobs", "list")[0]
    assert cli.json("jobs", "show", trained["id"])["state"] == "succeeded"
    assert "log" in cli.json("jobs", "logs", "sounds")


def test_a_plan_starts_nothing(cli: Cli) -> None:
    before = len(cli.json("jobs", "list")["jobs"])
    plan = cli.json(*TRAIN, "--plan")
    assert plan["steps"] > 0 and plan["trainable_parameters"] > 0
    assert len(cli.json("jobs", "list")["jobs"]) == before


def test_a_saved_job_file_gives_the_same_job(cli: Cli, tmp_path: Path, trained: dict[str, Any]) -> None:
    path = tmp_path / "job.yaml"
    cli(*TRAIN, "--plan", "--save-config", path)
    again, first = cli.json("train", "--config", path, "--plan"), cli.json(*TRAIN, "--plan")
    assert [again[key] for key in ("steps", "trainable_parameters")] == [
        first[key] for key in ("steps", "trainable_parameters")
    ]


def test_merge_export_and_ask(cli: Cli, trained: dict[str, Any], tmp_path: Path) -> None:
    merged = cli.json("merge", "sounds", "--name", "merged")
    assert (Path(merged["folder"]) / "model.safetensors").is_file() and merged["verified"]
    cli("export", "sounds", tmp_path / "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in (tmp_path / "adapter").iterdir()}
    cli("export", "merged", tmp_path / "merged.zip")
    with zipfile.ZipFile(tmp_path / "merged.zip") as archive:
        weights = (Path(merged["folder"]) / "model.safetensors").read_bytes()
        assert archive.read("merged/model.safetensors") == weights
    assert "already exists" in cli.refuses("export", "sounds", tmp_path / "adapter")
    ask = ("--max-new-tokens", "8", "--temperature", "0")
    compared = cli.json("compare", "What does the cat say?", "--adapter", "sounds", *ask)
    base, tuned = compared["answers"]
    assert base["sha256"] == "" and tuned["sha256"] == cli.json("adapters", "show", "sounds")["sha256"]
    assert cli.json("generate", "What does the cat say?", "--model", "toy", *ask)["text"] == base["text"]


def test_ctrl_c_lets_go_of_a_job_that_goes_on(cli: Cli) -> None:
    watching = cli.start(*TRAIN, "--epochs", "1000", "--patience", "0", "--name", "long")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(j["name"] == "long" for j in cli.json("jobs", "list")["jobs"]):
        time.sleep(0.2)
    time.sleep(0.5)
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=30)
    assert watching.returncode == 130 and "Detached" in said and "jobs cancel" in said and "Traceback" not in said
    assert cli.json("jobs", "show", "long")["state"] in ("queued", "running")
    cli("jobs", "cancel", "long")
    wait_until_cancelled(cli, "long")


def wait_until_cancelled(cli: Cli, job: str) -> None:
    deadline = time.monotonic() + 60
    while cli.json("jobs", "show", job)["state"] != "cancelled":
        assert time.monotonic() < deadline


def test_pause_and_resume(cli: Cli) -> None:
    job = cli.json(*TRAIN, "--epochs", "1000", "--patience", "0", "--no-wait", "--name", "paused")
    assert job["state"] in ("queued", "running")
    cli("jobs", "pause", job["id"])
    assert "paused" in cli("jobs", "show", job["id"], "--wait", code=2)[1]
    assert cli.json("jobs", "resume", job["id"])["state"] == "queued"
    assert cli.json("jobs", "cancel", job["id"])["desired"] in ("run", "cancel")
    wait_until_cancelled(cli, job["id"])


def test_doctor_and_lists(cli: Cli) -> None:
    report = cli.json("doctor")
    assert report["versions"]["torch"] and {check["level"] for check in report["checks"]} <= {"ok", "warning"}
    assert cli.json("datasets", "show", "animals", "--rows", "2")["preview"][0]["turns"]
    assert cli.json("models", "show", "toy")["targets"]


def test_adapters_without_an_alpha_are_listed_too(tmp_path: Path) -> None:
    from studio.artifacts import Library
    from studio.service import Studio
    from tests.studio.test_artifacts import a_model, an_adapter

    studio = Studio(tmp_path)
    library: Library = studio._library
    row = an_adapter(library, a_model(library), method="bitfit", eval_loss=0.58292699)
    studio.close()
    listed, shown = (
        subprocess.run(
            [*LORA_STUDIO, "adapters", *words, "--workspace", tmp_path], capture_output=True, text=True, check=True
        ).stdout
        for words in (["list"], ["show", row.id])
    )
    assert row.id in listed and " 0.5829 " in listed
    assert re.search(r"created_at +20\d\d-\d\d-\d\d \d\d:\d\d:\d\d *\n", shown)


def test_an_adapter_is_deleted_and_nothing_is_by_a_name_of_several(cli: Cli, trained: dict[str, Any]) -> None:
    first, second = (cli.json("adapters", "combine", "sounds", "sounds", "--name", "twice")["id"] for _ in range(2))
    assert f"newest first: {second}, {first}" in cli.refuses("adapters", "delete", "twice")
    assert cli.json("adapters", "show", "twice")["id"] == second
    assert cli.json("adapters", "delete", first) == {"deleted": first}
    folder = Path(cli.json("adapters", "show", second)["folder"])
    assert cli("adapters", "delete", "twice")[0] == "Deleted the adapter twice.\n" and not folder.exists()
    assert [item["name"] for item in cli.json("adapters", "list")["adapters"]] == ["sounds"]


def test_an_exported_adapter_is_imported_and_answers_alike(cli: Cli, trained: dict[str, Any], tmp_path: Path) -> None:
    cli("export", "sounds", tmp_path / "elsewhere")
    assert "no adapter_config.json" in cli.refuses("adapters", "import", tmp_path, "--model", "toy")
    back = cli.json("adapters", "import", tmp_path / "elsewhere", "--model", "toy")
    assert back["name"] == "elsewhere" and back["job_id"] is None
    asked = ("What does the cat say?", "--max-new-tokens", "4", "--temperature", "0")
    first, second = (cli.json("generate", *asked, "--adapter", name) for name in ("sounds", "elsewhere"))
    assert first == second
    cli("adapters", "delete", "elsewhere")


def test_what_is_needed_cannot_be_deleted(cli: Cli, trained: dict[str, Any]) -> None:
    assert "adapters" in cli.refuses("models", "delete", "toy")


# -- small pieces


def test_find_takes_the_newest_of_a_name() -> None:
    class Item:
        def __init__(self, id: str, name: str) -> None:
            self.id, self.name = id, name

    items = [Item("2", "a"), Item("1", "a"), Item("3", "b")]
    told = io.StringIO()
    with redirect_stderr(told):
        assert find(items, "a", "thing").id == "2"
    assert told.getvalue() == "2 things are called 'a'; this is the newest, 2. All, newest first: 2, 1\n"
    with redirect_stderr(told := io.StringIO()):
        assert find(items, "1", "thing").id == "1" and find(items, "b", "thing", is_lost=True).id == "3"
    assert not told.getvalue()
    with pytest.raises(StudioError, match=r"2 things are called 'a'\. Give the id of one, newest first: 2, 1\."):
        find(items, "a", "thing", is_lost=True)


def test_methods_tell_every_option(cli: Cli) -> None:
    kinds = listed()
    told = cli.json("methods")["methods"]
    assert [one["name"] for one in told] == list(kinds)
    for one in told:
        options = kinds[one["name"]].options
        assert [item["name"] for item in one["options"]] == ([*to_dict(options())] if options else [])
        shown = cli("methods", one["name"])[0]
        assert all(item["name"] in shown and item["help"][:30] in shown for item in one["options"])
    assert cli.json("methods", "adalora")["options"][0] == {
        "name": "target_r", "type": "int", "default": 0, "minimum": 0, "maximum": 4096, "choices": [],
        "help": "Average rank at the end; `r` is the one at the start. 0 leaves two thirds.",
    }  # fmt: skip
    assert "Did you mean 'adalora'?" in cli.refuses("methods", "adlora")


def test_plain_values_are_what_json_can_say() -> None:
    assert plain({"a": float("nan"), "b": (1, 2.5), "c": Path("x"), "d": None}) == {
        "a": None,
        "b": [1, 2.5],
        "c": "x",
        "d": None,
    }


@pytest.mark.parametrize(
    ("bytes_", "text"), [(0, "0 B"), (999, "999 B"), (269_100_000, "269.1 MB"), (10**13, "10.0 TB")]
)
def test_size(bytes_: int, text: str) -> None:
    assert size(bytes_) == text


@pytest.mark.parametrize(("seconds", "text"), [(None, None), (5, "5 s"), (65, "1 min 05 s"), (3725, "1 h 02 min")])
def test_duration(seconds: float | None, text: str | None) -> None:
    assert duration(seconds) == text
