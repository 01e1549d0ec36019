"""The tables of the models tab: adapters, merged models, base models, and the work that makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from studio.views import AdapterView, JobView, ModelView
from ui.fragments import Cell, Row, badge, button, callout, download, empty, esc, folded, progress, table
from ui.i18n import Translator
from ui.job_card import verification
from ui.quantities import NOTHING, bytes_text, count_text, loss_text, moment_text

DISMISS = "dismiss"  # the action of the button that deletes a failed job
_ADAPTER_COLUMNS = ("name", "from", "method", "loss", "size", "hash", "made", "actions")
_BASE_COLUMNS = ("name", "architecture", "parameters", "dtype", "context", "licence", "size", "actions")


def adapter_table(adapters: Sequence[AdapterView], names: Mapping[str, str], t: Translator) -> str:
    """Every adapter with its lineage; `names` are the models' names by id."""
    if not adapters:
        return empty(t("models.no_adapters"), t("models.no_adapters_text"))
    rows = (Row(_adapter_cells(adapter, names.get(adapter.model_id, NOTHING), t)) for adapter in adapters)
    return table([t(f"models.{name}") for name in _ADAPTER_COLUMNS], rows, t("models.adapters"))


def _adapter_cells(adapter: AdapterView, model: str, t: Translator) -> list[Cell | str]:
    return [
        Cell(f"<b>{esc(adapter.name)}</b>"),
        Cell.words(t("models.lineage", model=model, step=f"{adapter.step:,}")),
        Cell(_method_words(adapter, t)),
        Cell.number(loss_text(adapter.eval_loss)),
        Cell.number(bytes_text(adapter.size_bytes)),
        Cell(f'<code title="{esc(adapter.sha256)}">{esc(adapter.sha256[:12])}</code>'),
        Cell.number(moment_text(adapter.created_at)),
        Cell(_actions("adapter", adapter.id, t)),
    ]


def _method_words(adapter: AdapterView, t: Translator) -> str:
    """The method with the rank and alpha it has, and why it cannot be merged."""
    words = [t.sentence(adapter.method_title)]
    words += [f"r {adapter.r}"] if adapter.r is not None else []
    words += [f"α {adapter.lora_alpha:g}"] if adapter.lora_alpha is not None else []
    reason = f'<p class="caption">{esc(t.sentence(adapter.unmergeable))}</p>' if adapter.unmergeable else ""
    return f"{esc(' · '.join(words))}{reason}"


def merged_list(models: Sequence[ModelView], names: Mapping[str, str], t: Translator) -> str:
    """Every merged model with its download and how it was verified."""
    if not models:
        return empty(t("models.no_merged"), t("models.no_merged_text"))
    return "".join(_merged_item(model, names.get(model.base_id or "", ""), t) for model in models)


def _merged_item(model: ModelView, base: str, t: Translator) -> str:
    base = "" if base in model.source else base
    facts = (model.source, base, count_text(model.parameters), bytes_text(model.size_bytes))
    line = " · ".join(fact for fact in (*facts, moment_text(model.created_at)) if fact)
    figures = verification(model.verified, t)
    proof = folded(t("models.verified"), figures) if figures else ""
    return (
        f'<div class="item"><div><b>{esc(model.name)}</b><p class="caption">{esc(line)}</p>{proof}</div>'
        f"{_actions('model', model.id, t)}</div>"
    )


def base_table(models: Sequence[ModelView], t: Translator) -> str:
    """Every base model."""
    if not models:
        return empty(t("models.no_base"), t("models.no_base_text"))
    rows = (Row(_base_cells(model, t)) for model in models)
    return table([t(f"models.{name}") for name in _BASE_COLUMNS], rows, t("models.base"))


def _base_cells(model: ModelView, t: Translator) -> list[Cell | str]:
    template = "" if model.has_chat_template else f'<p class="caption">! {esc(t("models.no_template"))}</p>'
    return [
        Cell(f'<b>{esc(model.name)}</b><p class="caption">{esc(model.source)}</p>{template}'),
        model.architecture,
        Cell.number(count_text(model.parameters)),
        model.dtype,
        Cell.number(f"{model.context_length:,}"),
        model.licence or NOTHING,
        Cell.number(bytes_text(model.size_bytes)),
        Cell(f'<div class="actions">{button(t("models.delete"), model.id, "model")}</div>'),
    ]


def _actions(kind: str, item_id: str, t: Translator) -> str:
    delete = button(t("models.delete"), item_id, kind)
    return f'<div class="actions">{download(t("models.download"), kind, item_id)}{delete}</div>'


def work_cards(jobs: Sequence[JobView], t: Translator) -> str:
    """The merges and imports under way, and the newest one if it failed, until its job is deleted."""
    cards = [_work_card(job, t) for place, job in enumerate(jobs) if not job.is_over or place == 0]
    return f'<div class="work">{"".join(cards)}</div>' if any(cards) else ""


def _work_card(job: JobView, t: Translator) -> str:
    if job.state == "failed":
        box = callout("error", f"{job.name}: {t.sentence(job.error_what)}", t.sentence(job.error_fix), t)
        links = button(t("models.open_job"), job.id) + button(t("models.dismiss"), job.id, DISMISS)
        return f'<div>{box}<p class="links">{links}</p></div>'
    if job.is_over:
        return ""
    head = f"<b>{esc(job.name)}</b>{badge(job.state, t)}{button(t('models.open_job'), job.id)}"
    bar = progress(job.progress, job.name)
    return (
        f'<div class="card work-card"><div class="job-head">{head}</div>{bar}'
        f'<p class="caption" aria-live="polite">{esc(t.sentence(job.message))}</p></div>'
    )
