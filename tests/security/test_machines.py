"""Machines as they are: shadowed imports, loose umasks, secrets in the environment, no network, odd folders."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.scheduler import scheduler_is_running
from studio.service import Studio
from tests.scenarios.plugin import Say

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-P", "-m", "ui.main"]
TOKEN = "hf_" + "Zq7" * 12
OFFLINE_S = 10.0
SHADOWS = ("core", "studio", "ui", "torch", "json", "sqlalchemy", "gradio", "safetensors")


def until_over(studio: Studio, job_id: str, timeout_s: float = 60.0) -> str:
    """Wait until a job is over and return its state."""
    deadline = time.monotonic() + timeout_s
    while (job := studio.job(job_id)).state in ("queued", "running"):
        assert time.monotonic() < deadline, studio.log_tail(job_id)
        time.sleep(0.05)
    return job.state


@pytest.fixture
def closing() -> Iterator[list[Studio]]:
    """Studios whose schedulers end with the test."""
    made: list[Studio] = []
    yield made
    for studio in made:
        root = str(studio.workspace.root)
        studio.close()
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([*COMMAND, "stop", "--workspace", root], capture_output=True, check=True, cwd=ROOT, env=clean)
        assert not scheduler_is_running(studio.workspace)


@pytest.mark.scenario(45, 46)
def test_shadows_never_run_and_everything_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closing: list[Studio], figure: Say
) -> None:
    """Packages and modules with our names, and those of what we use, in each current directory and in PYTHONPATH."""
    canary, trap = tmp_path / "canary", tmp_path / "trap"
    root = tmp_path / "workspace"
    for place in (trap, root):
        for name in SHADOWS:
            (place / name).mkdir(parents=True, exist_ok=True)
            (place / name / "__init__.py").write_text(f"open({str(canary)!r}, 'a').write({name!r})\n")
            (place / f"{name}.py").write_text(f"open({str(canary)!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(trap)
    monkeypatch.setenv("PYTHONPATH", str(trap))
    previous = os.umask(0o022)
    try:
        studio = Studio(root)
        closing.append(studio)
        job = studio.submit("selftest", "count", {"steps": 3, "seconds_per_step": 0.01}, "")
        assert until_over(studio, job.id) == "succeeded"
    finally:
        os.umask(previous)
    assert not canary.exists()
    figure(f"{len(SHADOWS)} packages and modules in 2 current directories and PYTHONPATH: 0 ran", 45)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE(studio.workspace.database.stat().st_mode) == 0o600
    own = (root / "runs", root / "tmp", root / "datasets", root / "models", root / "adapters")
    made = [path for folder in own for path in (folder, *folder.rglob("*")) if path.is_dir()]
    loose = [path.name for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert loose == []
    figure("with umask 022: workspace and all folders in it 0700, database 0600", 46)


@pytest.mark.scenario(42, 43)
def test_a_token_in_the_environment_is_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closing: list[Studio], figure: Say
) -> None:
    """The hub is out of reach, and its address holds a password too: the job fails with a sentence, soon."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", f"http://user:{TOKEN[::-1]}@127.0.0.1:{port}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    studio = Studio(tmp_path / "workspace")
    closing.append(studio)
    job = studio.add_model("someone/private")
    assert until_over(studio, job.id) == "failed"
    failed = studio.job(job.id)
    assert failed.started_at is not None and failed.finished_at is not None
    assert failed.finished_at - failed.started_at <= OFFLINE_S, failed.error_what
    assert "could not be reached" in failed.error_what and failed.error_fix
    shown = [repr(failed), studio.log_tail(job.id), repr(studio.jobs()), repr(studio.system())]
    files = [path.read_bytes() for path in studio.workspace.root.rglob("*") if path.is_file()]
    secrets = (TOKEN, TOKEN[::-1])
    assert not any(secret in text for secret in secrets for text in shown)
    assert not any(secret.encode() in content for secret in secrets for content in files)
    figure(f"a token and a password of a failed download: 0 times in {len(files)} files and on the page", 42)


def test_a_token_in_a_log_a_traceback_or_an_export_is_hidden(tmp_path: Path, figure: Say) -> None:
    from studio.failures import explain
    from studio.log import HIDDEN, redact

    texts = [f"GET /?token={TOKEN}", f"Authorization: Bearer {TOKEN}", f"https://user:{TOKEN}@host/x", f"x={TOKEN};"]
    for text in texts:
        assert TOKEN not in redact(text) and HIDDEN in redact(text)
    try:
        raise RuntimeError(f"403 for {TOKEN}")
    except RuntimeError as error:
        failure = explain(error)
    assert not any(TOKEN in part for part in (failure.what, failure.fix, failure.detail))
    figure(f"{len(texts)} shapes of a secret in logs and a traceback: 0 left")


# -- odd folders and limits


def run(*arguments: str, prefix: tuple[str, ...] = (), files: int = 0, **environment: str) -> tuple[int, str, float]:
    """Run the command line; its exit code, what it said, and the seconds of the processor it took."""
    limit = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))) if files else None
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*prefix, *COMMAND, *arguments], capture_output=True, text=True, env=os.environ | environment, cwd=ROOT,
        preexec_fn=limit, encoding="utf-8", errors="replace", timeout=120, check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    return done.returncode, said, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def mounts() -> tuple[str, ...]:
    """A command in front that may mount file systems which only it sees."""
    prefix = ("unshare", "--user", "--map-root-user", "--mount")
    can = shutil.which("unshare") and not subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    if not can:
        pytest.skip("this system lets nobody make a mount namespace")
    return prefix


@pytest.mark.scenario(47)
def test_odd_folders_locale_and_few_descriptors(tmp_path: Path, figure: Say) -> None:
    data = tmp_path / "rows 😀 #1.jsonl"
    data.write_text('{"text": "你好"}\n', encoding="utf-8")
    odd = {
        "spaces, emoji, # and %": ({}, 0, tmp_path / "a b 😀 #1 %20 %s"),
        "locale C": ({"LC_ALL": "C", "LANG": "C"}, 0, tmp_path / "locale é"),
        "64 descriptors": ({}, 64, tmp_path / "few"),
    }
    for name, (environment, files, root) in odd.items():
        where = ("--workspace", str(root))
        code, said, _ = run("datasets", "add", str(data), *where, files=files, **environment)
        assert code == 0 and (root / "studio.db").is_file(), (name, said)
    unreadable = tmp_path / b"\xff.jsonl".decode("utf-8", "surrogateescape")
    unreadable.write_bytes(data.read_bytes())
    code, said, _ = run("datasets", "add", str(unreadable), *where)
    assert code == 2 and "Rename the file" in said
    figure(f"{', '.join(odd)}: each works; a file name that is no text: explained")


@pytest.mark.scenario(47)
@pytest.mark.parametrize(
    ("options", "why"), [("ro", "cannot be used"), ("nr_inodes=3", "cannot be"), ("size=8k,nr_inodes=50", "")]
)
def test_a_workspace_that_cannot_be_written(
    options: str, why: str, mounts: tuple[str, ...], tmp_path: Path, figure: Say
) -> None:
    mount = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
    prefix = (*mounts, "sh", "-c", mount, str(tmp_path))
    code, said, cpu_s = run("datasets", "list", "--workspace", str(tmp_path), prefix=prefix)
    assert code != 0 and why in said, said
    assert cpu_s <= 2
    figure(f"a file system with {options}: explained within 2 s of the processor")


@pytest.mark.slow
@pytest.mark.scenario(43)
def test_the_main_job_needs_no_network(tmp_path: Path, figure: Say) -> None:
    """In a network namespace of its own there is not even loopback."""
    prefix = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody make a network namespace")
    from tests.toy import save_model, write_dataset

    model, data = save_model(tmp_path / "model"), write_dataset(tmp_path / "animals.jsonl")
    script = [sys.executable, "-m", "tests.security.offline_run", str(tmp_path / "workspace"), str(model), str(data)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([*prefix, *script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    seconds = float(lines[-1].rpartition(" ")[2])
    assert seconds <= OFFLINE_S + 5, "with the start of the command and of its worker"
    figure(
        "a network namespace without any network: model and data added, trained, merged and asked; the hub: a sentence"
    )
