"""What is installed: exact versions of everything, and a wheel that holds nothing but our packages."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.scenarios.plugin import Say

ROOT = Path(__file__).resolve().parents[2]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _bare(requirement: str) -> str:
    return _normal(re.split(r"[\s\[<>=!;~(]", requirement, maxsplit=1)[0])


def _pins() -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pairs = [line.partition(";")[0].strip().split("==") for line in lines if line]
    assert all(len(pair) == 2 and pair[1] for pair in pairs), "every line is an exact version"
    return {_normal(name): version for name, version in pairs}


@pytest.mark.scenario(44)
def test_every_dependency_is_pinned(figure: Say) -> None:
    pins = _pins()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for group in project["optional-dependencies"].values() for name in group]
    direct = set(map(_bare, project["dependencies"])) | {name for name in map(_bare, extras) if _is_installed(name)}
    assert direct - pins.keys() == set()
    waiting, needed = list(direct), set(direct)
    while waiting:  # what those pull in, as far as it is installed here
        try:
            required = metadata.requires(waiting.pop()) or []
        except metadata.PackageNotFoundError:
            continue
        for entry in required:
            name = _bare(entry)
            if "extra ==" not in entry and name not in needed and _is_installed(name):
                needed.add(name)
                waiting.append(name)
    needed -= {"setuptools", "pip", "wheel"}
    assert needed - pins.keys() == set()
    figure(f"{len(direct)} dependencies and the {len(needed - direct)} that they pull in: all pinned to one version")


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.scenario(44)
def test_the_wheel_holds_only_our_packages(tmp_path: Path, figure: Say) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    source = tmp_path / "source"  # a copy, so that nothing is built into the tree
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(source)], check=True)
    subprocess.run([*build, str(tmp_path), str(source)], check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"core", "studio", "ui"}
    inside = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert {Path(name).suffix for name in inside} <= {".py", ".typed", ".css", ".svg", ".json", ".mako"}
    assert {"ui/style.css", "ui/i18n/zh.json", "studio/migrations/env.py"} <= inside
    figure(f"the wheel: {len(inside)} files, all of core, studio and ui")
