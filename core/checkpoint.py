"""Saving a run so that it goes on bit for bit, and finding what was saved. Torch-free at import, for the listing.

A checkpoint is a folder `step-000120`:

    adapter_config.json, adapter_model.safetensors   the adapter as a PEFT folder, usable by itself
    trainer.safetensors                              AdamW's moments and the random states
    trainer.json                                     step, sampler position, best so far, scalars
    manifest.json                                    SHA-256 of each file, hash of the settings and of the data

There is no pickle in it. `folder` is always the one that holds the step folders.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config import to_dict
from core.durable import (
    MANIFEST,
    read_manifest,
    sync_file,
    sync_folder,
    verify_folder,
    whole_folder,
    write_file,
)
from core.errors import CheckpointError, DivergedError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from core.train import Trainer

FORMAT = 2
STATE = "trainer.json"
TENSORS = "trainer.safetensors"
_STEP_FOLDER = re.compile(r"step-(\d{6,})")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_COUNTERS = ("step", "best_step", "measurements_since_best", "stopped_early")


@dataclass(frozen=True)
class CheckpointInfo:
    """A saved step, as a list shows it."""

    path: Path
    step: int
    eval_loss: float | None  # as measured at this step
    size_bytes: int
    is_best: bool  # of those still on the disk
    saved_at: float  # seconds since 1970


def save_checkpoint(trainer: Trainer, folder: Path) -> Path:
    """Write the checkpoint of the trainer's step into `folder` and return it; it is there whole or not at all.

    Raises, before anything is written, DiskFullError when there is not enough room, and DivergedError when a trained
    weight is not finite: such a checkpoint would only replace a good one.
    """
    from safetensors.torch import save

    if not all(bool(parameter.isfinite().all()) for parameter in trainer.parameters):
        what = f"A trained weight became NaN or infinite by step {trainer.step}, which is not saved."
        raise DivergedError(what, "Lower the learning rate, for example to a tenth; earlier checkpoints are kept.")
    target = folder / f"step-{trainer.step:06d}"
    tensors = _tensors(trainer)
    facts = {"format": FORMAT, "config_sha256": config_sha256(trainer), "data_sha256": trainer.examples.sha256()}
    with whole_folder(target, checkpoint_bytes(trainer, folder), facts) as temporary:
        _write_adapter(trainer, temporary)
        write_file(temporary / TENSORS, save(tensors))
        write_file(temporary / STATE, json.dumps(_state(trainer), indent=2, sort_keys=True).encode())
    return target


def checkpoint_bytes(trainer: Trainer, folder: Path) -> int:
    """How large the next checkpoint will be: as the largest in `folder`, else adapter and two moments of AdamW."""
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in _step_folders(folder)]
    return max(sizes, default=3 * sum(parameter.nbytes for parameter in trainer.parameters))


def damaged_since(folder: Path, path: Path | None) -> list[str]:
    """The names of the checkpoints in `folder` that are newer than `path`, the newest whole one: all are damaged."""
    newer = [found.name for found in _step_folders(folder)]
    return newer if path is None else newer[newer.index(path.name) + 1 :]


def _write_adapter(trainer: Trainer, folder: Path) -> None:
    from safetensors import SafetensorError

    from core.export.peft import save_adapter
    from core.export.task_file import write_task

    try:
        save_adapter(trainer.model, folder, trainer.adapter, base_model=_base_name(trainer.model))
        write_task(folder, trainer.task.facts())
    except SafetensorError as error:  # how safetensors reports a full disk
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error
    for path in sorted(folder.iterdir()):
        sync_file(path)


def config_sha256(trainer: Trainer) -> str:
    """A fingerprint of every setting of a run."""
    return hashlib.sha256(json.dumps(to_dict(trainer.config), sort_keys=True).encode()).hexdigest()


def _base_name(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")


def _state(trainer: Trainer) -> dict[str, Any]:
    best = trainer.best_eval_loss
    return {
        **{name: getattr(trainer, name) for name in _COUNTERS},
        "best_eval_loss": best if math.isfinite(best) else None,
        "eval_loss": trainer.last_eval_loss,
        "total_steps": trainer.total_steps,
        "sampler": trainer.sampler.state_dict(),
        "gradients": trainer.gradients.state_dict(),
        "random": trainer.random.scalars(),
        "rule": trainer.rule.scalars(),
    }


def _named_parameters(trainer: Trainer) -> dict[str, nn.Parameter]:
    """The trained parameters by their names in the model, in the optimizer's order."""
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    return {names[id(parameter)]: parameter for parameter in trainer.parameters}


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {f"random.{name}": state for name, state in trainer.random.tensors().items()}
    for name, parameter in _named_parameters(trainer).items():
        for moment, value in trainer.optimizer.state.get(parameter, {}).items():
            own = value.detach().cpu().contiguous()
            found[f"optimizer.{moment}.{name}"] = own if own.dim() else own.clone()  # a count that others share
    return found | {f"rule.{name}": tensor.cpu().contiguous() for name, tensor in trainer.rule.tensors().items()}


def load_checkpoint(trainer: Trainer, path: Path) -> None:
    """Put a trainer, made with the same settings and data, where it was when the checkpoint at `path` was saved.

    Raises CheckpointError when a file is damaged, or when the checkpoint belongs to other settings or other data.
    """
    from safetensors.torch import load

    manifest = verify_folder(path)
    _check_same_run(trainer, manifest, path)
    state = json.loads((path / STATE).read_bytes())
    tensors = load((path / TENSORS).read_bytes())
    trainer.rule.load_scalars(state["rule"])
    trainer.renew_optimizer()
    load_adapter_weights(trainer.model, path, trainer.adapter)
    for name, tensor in trainer.rule.tensors().items():
        tensor.copy_(tensors[f"rule.{name}"])
    _load_optimizer(trainer, tensors)
    _load_counters(trainer, state, tensors)


def _check_same_run(trainer: Trainer, manifest: dict[str, Any], path: Path) -> None:
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path.name} was written by another version.", "Start the run again.")
    own = {"config_sha256": config_sha256(trainer), "data_sha256": trainer.examples.sha256()}
    for key, what in (("config_sha256", "other settings"), ("data_sha256", "another dataset or tokenizer")):
        if manifest.get(key) != own[key]:
            raise CheckpointError(f"{path.name} belongs to {what}.", "Resume with what it was started with.")


def load_adapter_weights(model: nn.Module, path: Path, name: str = "default") -> None:
    """Copy the adapter tensors of a checkpoint into the adapter `name`, which the model already has."""
    from safetensors.torch import load

    from core.adapters import load_adapter_state_dict
    from core.export.peft_config import WEIGHTS_NAME

    load_adapter_state_dict(model, load((path / WEIGHTS_NAME).read_bytes()), name)


def _load_optimizer(trainer: Trainer, tensors: dict[str, Tensor]) -> None:
    for name, parameter in _named_parameters(trainer).items():
        found = {moment: tensors.get(f"optimizer.{moment}.{name}") for moment in _MOMENTS}
        trainer.optimizer.state.pop(parameter, None)
        if any(value is not None for value in found.values()):
            trainer.optimizer.state[parameter] = {
                moment: value.to(parameter.device) for moment, value in found.items() if value is not None
            }


def _load_counters(trainer: Trainer, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    from core.rng import RandomState

    for name in _COUNTERS:
        setattr(trainer, name, state[name])
    trainer.best_eval_loss = math.inf if state["best_eval_loss"] is None else state["best_eval_loss"]
    trainer.last_eval_loss = state["eval_loss"]
    trainer.sampler.load_state_dict(state["sampler"])
    trainer.gradients.load_state_dict(state["gradients"])
    prefix = "random."
    random = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    trainer.random = RandomState.load(random, state["random"])


def restore_best(trainer: Trainer, folder: Path) -> int:
    """Put the adapter weights of the best measured step in place and return that step.

    Without validation rows, or when the best step is the current one, the weights stay as they are. Raises
    CheckpointError when the best checkpoint is gone or damaged.
    """
    best = trainer.best_step
    if best in (0, trainer.step):
        return trainer.step
    path = folder / f"step-{best:06d}"
    verify_folder(path)
    load_adapter_weights(trainer.model, path, trainer.adapter)
    return best


def checkpoints(folder: Path) -> list[CheckpointInfo]:
    """The checkpoints in `folder`, oldest step first; damaged state files are left out. Hashes are not checked."""
    states = [(path, state) for path in _step_folders(folder) if (state := _read_state(path)) is not None]
    best = states[-1][1]["best_step"] if states else 0
    return [_info(path, state, best) for path, state in states]


def _step_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _STEP_FOLDER.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _read_state(path: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((path / STATE).read_bytes())
        read_manifest(path)
    except (OSError, ValueError, CheckpointError, RecursionError):
        return None
    return state if isinstance(state, dict) and "best_step" in state and "step" in state else None


def _info(path: Path, state: dict[str, Any], best: int) -> CheckpointInfo:
    size = sum(file.stat().st_size for file in path.iterdir())
    saved_at = (path / MANIFEST).stat().st_mtime
    return CheckpointInfo(path, state["step"], state.get("eval_loss"), size, state["step"] == best, saved_at)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all as they were written; None when there is none."""
    for path in reversed(_step_folders(folder)):
        try:
            verify_folder(path)
        except CheckpointError:
            continue
        return path
    return None


def prune(folder: Path, keep: int, best_step: int = 0) -> list[Path]:
    """Remove all but the newest `keep` checkpoints and the best one; returns what was removed.

    Damaged ones do not count as kept, so that `keep` checkpoints to go back to always remain.
    """
    whole = [path for path in _step_folders(folder) if _read_state(path) is not None]
    kept = {*whole[-keep:], folder / f"step-{best_step:06d}"}
    removed = [path for path in _step_folders(folder) if path not in kept]
    for path in removed:
        shutil.rmtree(path, ignore_errors=True)
    if removed:
        sync_folder(folder)
    return removed
