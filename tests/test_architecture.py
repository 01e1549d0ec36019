"""The structure, held by tests: import directions, banned calls, documented and annotated names, and a true README."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "studio", "ui")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MIGRATIONS = ROOT / "studio" / "migrations"

ALLOWED = {"core": {"core"}, "studio": {"core", "studio"}, "ui": {"core", "studio", "ui"}}
ORACLES = {"peft", "loralib", "trl", "unsloth"}
FOREIGN = {
    "core": {
        "sqlalchemy",
        "alembic",
        "gradio",
        "fastapi",
        "starlette",
        "uvicorn",
        "subprocess",
        "multiprocessing",
        "psutil",
    },
    "studio": {"gradio"},
    "ui": {"torch", "sqlalchemy", "alembic", "sqlite3", "transformers", "datasets"},
}
# The web process starts fast, holds no GPU memory, and cannot be taken down by a CUDA crash.
HEAVY = ("torch", "transformers", "datasets")
WEAKENED_TESTS = re.compile(r"assert True\b|pytest\.mark\.skip\b(?!if)")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for module in imported_modules(parse(path)):
        top = module.partition(".")[0]
        assert top not in PACKAGES or top in ALLOWED[package], f"{package} must not import {module}"
        assert top not in FOREIGN[package], f"{package} must not know {module}"
        assert top not in ORACLES, f"{module} is an oracle for tests, never a part of the product"


def banned_calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield "a bare except"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in {
            "eval",
            "exec",
            "print",
            "os.system",
            "os.popen",
            "torch.load",
            "shutil.move",
            "joblib.load",
            "numpy.load",
        }:
            yield f"{name}()"
        for keyword in node.keywords:
            setting = f"{keyword.arg}={ast.unparse(keyword.value)}"
            if setting in {
                "shell=True",
                "trust_remote_code=True",
                "trust_remote_code=None",
                "share=True",
                "weights_only=False",
            }:
                yield setting


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_banned(path: Path) -> None:
    tree = parse(path)
    assert list(banned_calls(tree)) == []
    unsafe = {"pickle", "cPickle", "dill", "shelve", "marshal"}
    assert not unsafe & {module.partition(".")[0] for module in imported_modules(tree)}
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text(encoding="utf-8"))


def public_definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    child
                    for child in node.body
                    if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_")
                )


@pytest.mark.parametrize("path", [p for p in SOURCES if MIGRATIONS not in p.parents], ids=relative)
def test_public_names_are_documented_and_annotated(path: Path) -> None:
    tree = parse(path)
    if tree.body:
        assert ast.get_docstring(tree), "the file needs one sentence on what it is"
    for node in public_definitions(tree):
        assert ast.get_docstring(node), f"{node.name} needs a docstring"
        if not isinstance(node, ast.ClassDef):
            assert node.returns is not None, f"{node.name} needs a return annotation"
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [
                argument.arg
                for argument in named
                if argument.annotation is None and argument.arg not in ("self", "cls")
            ]
            assert bare == [], f"{node.name}: {bare} need annotations"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_are_short_and_well_named(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
    assert path.stem not in {"utils", "util", "common", "helpers", "misc", "v2", "tools"}


def test_one_kind_of_top_level() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    folders = {name.split("/")[0] for name in listed if "/" in name}
    assert {name for name in folders if not name.startswith(".")} <= {"assets", "core", "studio", "tests", "ui", "docs"}


def test_web_process_imports_nothing_heavy() -> None:
    modules = "studio.service, studio.cli, studio.guard, studio.files, studio.chat_client, ui.app, ui.main"
    code = f"import sys, {modules}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_core_is_light() -> None:
    modules = "core, core.config, core.models, core.data.dataset"
    code = f"import sys, {modules}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_readme_tree_is_the_real_one(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    block = re.search(r"```text\n(core/.*?)```", text, re.S)
    assert block, "the README shows the tree in a text block that starts with core/"
    folder = ""
    shown: set[str] = set()
    for line in block.group(1).splitlines():
        name = line.split("  ")[0].strip() if not line.startswith(" ") else line.strip().split("  ")[0]
        if not line.startswith(" "):
            folder = name.rstrip("/")
            shown.add(folder)
        elif name:
            shown.update(f"{folder}/{part.rstrip('/')}" for part in name.split())
    missing = [name for name in shown if not (ROOT / name).exists()]
    assert missing == [], f"{readme} names what is not there"
    real = {relative(path) for package in PACKAGES for path in (ROOT / package).glob("*.py") if path.stem != "__init__"}
    real |= {
        relative(path)
        for p in PACKAGES
        for path in (ROOT / p).iterdir()
        if path.is_dir() and not path.name.startswith("__")
    }
    assert sorted(real - shown) == [], f"{readme} does not show these"


def test_tests_are_not_weakened() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path.name != Path(__file__).name:
            assert not WEAKENED_TESTS.search(path.read_text(encoding="utf-8")), relative(path)


def test_no_path_of_a_machine_is_named() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.toml", "*.txt", "Makefile", ".ci/run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    pattern = re.compile(r"(?<![\w.])/(?:work|opt|root|home)/\w")
    assert [name for name in listed if pattern.search((ROOT / name).read_text(encoding="utf-8"))] == []
