"""What can be made of a trained adapter: a rank report, a smaller one, one that other programs read.

Adapters of LoRA's kind are read with numpy alone. Another method is put on its base's modules, which loads torch: only
callers that may (the command line, never the page) say so with `loads_torch`.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from core.combine import Combination, check_combination, combine_folders
from core.compress import Compression, compress_adapter
from core.durable import file_sha256
from core.errors import AdapterError
from core.export.method_file import METHOD_NAME
from core.export.peft_config import CONFIG_NAME, WEIGHTS_NAME, read_adapter_config, read_shapes, weights_file
from core.export.portable import PortableExport, export_portable
from core.export.task_file import TASK_NAME
from core.methods import methods
from core.model_config import read_config
from core.models import inspect_model
from core.rank import RankReport, rank_for_energy, rank_report, suggest_rank
from studio.artifacts import Library
from studio.files import move_folder, size_bytes
from studio.show import adapter_view
from studio.tables import AdapterRow
from studio.views import AdapterView, LayerRankView, RankView
from studio.workspace import Workspace, new_id

SHARES = (0.90, 0.95, 0.99)
LONGEST_NAME = 120
T = TypeVar("T")


class AdapterShelf:
    """The adapters of one workspace."""

    def __init__(self, workspace: Workspace, library: Library) -> None:
        self.workspace = workspace
        self.library = library
        self.rank = lru_cache(maxsize=32)(self._rank)  # adapters never change

    def _rank(self, adapter_id: str, loads_torch: bool = False) -> RankView:
        """How much of its rank an adapter uses."""
        row = self.library.adapter(adapter_id)
        base = self._base(row, loads_torch)
        thumb = suggest_rank(inspect_model(base).hidden_size) if base is not None else 0
        return _view(adapter_id, rank_report(self.library.adapter_folder(row), base), thumb)

    def compress(
        self, adapter_id: str, r: int | None, energy: float | None, name: str = "", loads_torch: bool = False
    ) -> tuple[AdapterView, Compression]:
        """File a new adapter with lower ranks, and tell what was lost."""
        row = self.library.adapter(adapter_id)
        base, folder = self._base(row, loads_torch), self.library.adapter_folder(row)
        made, found = self._made(row, name, lambda build: compress_adapter(folder, build, r, energy, base))
        return made, found

    def _made(self, source: AdapterRow, name: str, write: Callable[[Path], T]) -> tuple[AdapterView, T]:
        """A new adapter of the source's model, from the folder that `write` fills; it is filed whole or not at all."""
        made = new_id()
        build = self.workspace.tmp / f"adapter-{made}"
        try:
            found = write(build)
            move_folder(build, self.workspace.adapter_folder(made))
        finally:
            shutil.rmtree(build, ignore_errors=True)
        new = self._row(made, source.model_id, source.step, name)
        new.name = name or f"{source.name} r{new.r}"
        self.library.add(new)
        return adapter_view(new), found

    def combine(
        self,
        adapter_ids: Sequence[str],
        weights: Sequence[float],
        method: str = "cat",
        r: int | None = None,
        name: str = "",
        loads_torch: bool = False,
    ) -> tuple[AdapterView, Combination]:
        """File the weighted sum of adapters of one model as a new adapter, and tell what was lost."""
        rows = [self.library.adapter(adapter_id) for adapter_id in adapter_ids]
        check_combination(len(rows), weights, method, r)
        if len(rows) == 1 and method == "cat" and weights[0] == 1:
            raise AdapterError("One adapter alone, at weight 1, stays what it is.", "Give several, or another weight.")
        if len({row.model_id for row in rows}) > 1:
            raise AdapterError("The adapters belong to different models.", "Pick adapters of one model.")
        bases = [self._base(row, loads_torch) for row in rows]
        folders = [self.library.adapter_folder(row) for row in rows]
        return self._made(
            rows[0],
            name or _sum_name([row.name for row in rows], weights)[:LONGEST_NAME],
            lambda build: combine_folders(folders, weights, build, method, r, bases[0]),
        )

    def take_in(self, source: Path, model_id: str, name: str = "") -> AdapterView:
        """File a copy of an adapter from a folder in PEFT's layout; loads torch, to try it on the modules of its base.

        Raises AdapterError when it is none, or not one of this model.
        """
        model = self.library.model(model_id)
        made = new_id()
        build = self.workspace.tmp / f"adapter-{made}"
        try:
            build.mkdir(mode=0o700)
            _copy_adapter(source, build)
            _try_on(self.library.model_folder(model), build)
            move_folder(build, self.workspace.adapter_folder(made))
        except OSError as error:
            raise AdapterError(
                f"{source} cannot be copied: {error.strerror}.", "Check the path and the disk."
            ) from error
        finally:
            shutil.rmtree(build, ignore_errors=True)
        row = self._row(made, model.id, 0, name or source.absolute().name)
        self.library.add(row)
        return adapter_view(row)

    def portable(self, adapter_id: str, out: Path, r: int | None = None, loads_torch: bool = False) -> PortableExport:
        """Write an adapter to a new folder as vLLM, llama.cpp and Ollama read it right."""
        row = self.library.adapter(adapter_id)
        return export_portable(self.library.adapter_folder(row), out, self._base(row, loads_torch), r)

    def portable_folder(self, adapter_id: str) -> Path:
        """The same in a folder of the workspace, made when it is first asked for."""
        folder = self.workspace.tmp / f"portable-{self.library.adapter(adapter_id).id}"
        if not folder.is_dir():
            build = self.workspace.tmp / f"{folder.name}-{new_id()}"
            try:
                self.portable(adapter_id, build)
                build.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another request made it meanwhile
                    raise
            finally:
                shutil.rmtree(build, ignore_errors=True)
        return folder

    def forget(self, adapter_id: str) -> None:
        """Remove what was made of a deleted adapter on the way."""
        self.workspace.discard(self.workspace.tmp / f"portable-{adapter_id}")

    def _base(self, row: AdapterRow, loads_torch: bool) -> Path | None:
        """The folder of the base, if it is still there."""
        about = methods.get(row.method)
        if about.merges and not about.stores_pairs and not loads_torch:
            raise AdapterError(
                f"{about.title} does not store its change as two factors per layer.",
                "Use the command line: lora-studio adapters rank, or export --format portable.",
            )
        folder = self.library.model_folder(self.library.model(row.model_id))
        return folder if folder.is_dir() else None

    def _row(self, made: str, model_id: str, step: int, name: str) -> AdapterRow:
        folder = self.workspace.adapter_folder(made)
        config = read_adapter_config(folder)
        shapes = read_shapes(folder).values()
        return AdapterRow(
            id=made,
            name=name,
            model_id=model_id,
            method=config.method,
            r=config.r,
            lora_alpha=config.lora_alpha,
            parameters=sum(map(math.prod, shapes)),
            size_bytes=size_bytes(folder),
            sha256=file_sha256(folder / WEIGHTS_NAME),
            step=step,
        )


def weights_of(text: str, count: int) -> list[float]:
    """ "0.7, 0.3" as numbers; equal shares of 1 when it is empty. AdapterError for anything else."""
    if not text.strip():
        return [1.0 / count] * count if count else []
    try:
        return [float(part) for part in re.split("[,;，；、]", text)]
    except ValueError:
        raise AdapterError(f"The weights are {text!r}.", "Write numbers with commas between: 0.7, 0.3.") from None


def _copy_adapter(source: Path, build: Path) -> None:
    """The files that make an adapter, and nothing else that lies beside them."""
    read_adapter_config(source)  # names what is missing
    shutil.copyfile(weights_file(source), build / WEIGHTS_NAME)
    for name in (CONFIG_NAME, METHOD_NAME, TASK_NAME):
        if (source / name).is_file():
            shutil.copyfile(source / name, build / name)


def _try_on(base: Path, adapter: Path) -> None:
    """Put an adapter on the modules of a base, without its weights."""
    from core.export.peft import load_adapter
    from core.skeleton import adapted_config, make_skeleton

    load_adapter(make_skeleton(adapted_config(read_config(base), adapter), base), adapter)


def _sum_name(names: Sequence[str], weights: Sequence[float]) -> str:
    """What a sum is called: after its parts; a part alone would give it its own name, so that its weight is told."""
    return " + ".join(names) if len(names) > 1 else f"{names[0]} x {weights[0]:g}"


def _view(adapter_id: str, report: RankReport, rule_of_thumb: int) -> RankView:
    layers = tuple(
        LayerRankView(one.path, one.rank, one.norm, one.effective_rank, *(one.rank_for(share) for share in SHARES))
        for one in report.layers
    )
    rank_90, rank_95, rank_99 = (rank_for_energy(report, share) for share in SHARES)
    return RankView(adapter_id, report.rank, rank_90, rank_95, rank_99, not report.squares.any(), layers, rule_of_thumb)
