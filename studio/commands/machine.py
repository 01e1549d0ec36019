"""`lora-studio doctor`, `stop`, `setup` and `demo`: the studio and the machine it runs on."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import typer

from studio.commands.terminal import FAILED, AsJson, Workspace, emit, facts, open_studio, plain, size, table

if TYPE_CHECKING:
    from studio.views import Check, SystemView

LOW_DISK_BYTES = 5 * 10**9


def doctor(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Check this machine and the workspace; exit code 1 when something keeps the studio from working."""
    with open_studio(workspace) as studio:
        system = studio.system()
    checks = _checks(system)
    emit(as_json, plain(system) | {"checks": checks}, _report(system, checks))
    if any(check.level == "error" for check in checks):
        raise typer.Exit(FAILED)


def stop(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """End the studio's page and scheduler; running jobs save first and go on at the next start."""
    from studio.scheduler import stop_scheduler
    from studio.server import stop_server
    from studio.workspace import Workspace as Place

    place = Place.open(workspace)
    ended = {"server": stop_server(place), "scheduler": stop_scheduler(place)}
    text = (
        "The studio has ended; its jobs wait at their last checkpoint."
        if any(ended.values())
        else "Nothing was running."
    )
    emit(as_json, ended, text)


def setup(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Add the starter model and the sample datasets where the workspace lacks them; quick the second time."""
    from studio.demo import set_up

    with open_studio(workspace) as studio:
        made = set_up(studio)
        result = {
            "model": {"id": made.model.id, "name": made.model.name},
            "datasets": made.datasets,
            "added": made.added,
        }
    text = f"Added {', '.join(made.added)}." if made.added else "Everything was there already."
    emit(as_json, result, text)


def demo(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Do the main job once: train the starter model on sample tickets, compare, merge, verify."""
    from studio.demo import run_demo

    with open_studio(workspace) as studio:
        report = run_demo(studio)
    emit(as_json, report, report.shown())


def _checks(system: SystemView) -> list[Check]:
    from studio.views import Check

    missing = [
        name for name, version in system.versions.items() if version == "not installed" and name != "lora-studio"
    ]
    found = [Check("ok", f"Python {platform.python_version()}")]
    if missing:
        found.append(Check("error", f"Not installed: {', '.join(missing)}.", "Install the studio again."))
    if system.disk_free_bytes < LOW_DISK_BYTES:
        found.append(Check("warning", f"Only {size(system.disk_free_bytes)} of disk are free.", "Free some space."))
    if all(device.kind == "cpu" for device in system.devices):
        found.append(Check("warning", "No GPU was found: jobs run on the CPU.", "Small models train well on it."))
    return found


def _report(system: SystemView, checks: list[Check]) -> Any:
    from rich.console import Group

    shown = {"workspace": system.workspace, "disk free": size(system.disk_free_bytes)}
    shown |= {f"disk used by {name}": size(used) for name, used in system.disk_used.items()}
    for device in system.devices:
        shown[device.kind] = f"{device.name}, {size(device.memory_total_bytes)}"
    shown |= {"scheduler": "running" if system.scheduler_running else "not running", "queued jobs": str(system.queued)}
    shown |= dict(system.versions)
    return Group(facts(shown), "", table(("check", "", ""), [(check.level, check.text, check.fix) for check in checks]))
