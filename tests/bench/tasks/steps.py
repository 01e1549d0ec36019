"""The steps of a pretraining: on a GPU a graph is recorded for every shape, as launching took most of the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from tests.bench.record import say

Batch = tuple[torch.Tensor, torch.Tensor]  # sources (B, S) and targets (B, T), zeros behind their ends


@dataclass(frozen=True)
class _Recorded:
    graph: Any
    batch: Batch
    loss: torch.Tensor


class Steps:
    """A step of AdamW on every batch it is called with; `groups` have parameters and a `rate` each."""

    def __init__(self, model: Any, groups: list[dict[str, Any]]) -> None:
        self.model, self.device = model, next(model.parameters()).device
        self.records = self.device.type == "cuda"
        for group in groups:
            group["lr"] = torch.zeros((), device=self.device)  # a graph reads it anew every time
        self.optimizer = torch.optim.AdamW(
            groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True, capturable=self.records
        )
        self._recorded: dict[tuple[torch.Size, torch.Size], _Recorded] = {}

    def follow(self, share: float) -> None:
        """Learn at this share of every group's rate from now on."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(group["rate"] * share)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """The loss before the step."""
        key = batch[0].shape, batch[1].shape
        if key in self._recorded:
            known = self._recorded[key]
            for static, new in zip(known.batch, batch, strict=True):
                static.copy_(new, non_blocking=True)
            known.graph.replay()
            return known.loss.clone()
        moved = batch[0].to(self.device), batch[1].to(self.device)
        loss = self._warmed_up(moved) if self.records else self._step(moved)
        if self.records:
            try:
                self._recorded[key] = self._record(moved)
            except RuntimeError as error:
                self.records = False
                say(f"steps are not recorded: {str(error).splitlines()[0]}")
        return loss

    def _warmed_up(self, batch: Batch) -> torch.Tensor:
        """A step on a stream of its own, as recording asks for."""
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self._step(batch)
        torch.cuda.current_stream().wait_stream(stream)
        return loss

    def _record(self, batch: Batch) -> _Recorded:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self._step(batch)
        return _Recorded(graph, batch, loss)

    def _step(self, batch: Batch) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        source, labels = batch[0].long(), batch[1].long()
        first = labels.new_full((len(labels), 1), self.model.config.decoder_start_token_id)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda", cache_enabled=False):
            logits = self.model(
                input_ids=source, attention_mask=(source != 0).long(),
                decoder_input_ids=torch.cat([first, labels[:, :-1]], dim=1), use_cache=False,
            ).logits  # fmt: skip
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=0)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined] # changes nothing then
        self.optimizer.step()
        return loss.detach()
