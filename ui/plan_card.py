"""The plan card: what a run will take, and a checklist that says whether it may start."""

from __future__ import annotations

from core.config import TrainConfig
from core.errors import StudioError
from core.methods import methods
from studio.views import Check, PlanView
from ui.fragments import SYMBOLS, callout, esc, readings
from ui.i18n import Translator
from ui.plots import memory_bar, target_bars
from ui.quantities import bytes_text, count_text, duration_text, share_text


def plan_card(plan: PlanView, t: Translator) -> str:
    """The card's HTML."""
    share = plan.trainable_parameters / plan.total_parameters if plan.total_parameters else 0.0
    figures = {
        t("plan.rows"): f"{plan.rows:,}",
        t("plan.held_out"): f"{plan.validation_rows:,}",
        t("plan.steps"): f"{plan.steps:,}",
        t("plan.time"): duration_text(plan.seconds, t) if plan.seconds is not None else t("plan.time_unknown"),
        t("plan.tokens"): count_text(plan.tokens_per_epoch),
        t("plan.disk"): bytes_text(plan.disk_bytes),
    }
    trainable = t("plan.trainable_value", n=count_text(plan.trainable_parameters), share=share_text(share, 2))
    return (
        f'{readings(figures)}<p class="caption">{esc(t("plan.device", name=t.sentence(plan.device)))}</p>'
        f"<h3>{esc(t('plan.memory'))}</h3>"
        f"{memory_bar(plan.memory, plan.memory_total_bytes, plan.memory_free_bytes, t)}"
        f'<h3>{esc(t("plan.trainable"))} <b id="trainable-parameters">{esc(trainable)}</b></h3>'
        f"{target_bars(plan.trainable_by_target, t)}"
        f"<h3>{esc(t('plan.checks'))}</h3>{checklist(plan.checks, t)}"
    )


def checklist(checks: tuple[Check, ...], t: Translator) -> str:
    """Every check with symbol, level in words and remedy."""
    lines = "".join(
        f'<li class="check check-{esc(check.level)}"><i aria-hidden="true">{SYMBOLS.get(check.level, "i")}</i>'
        f'<span><span class="level">{esc(t(f"level.{check.level}"))}</span> {esc(t.sentence(check.text))} '
        f'<span class="fix">{esc(t.sentence(check.fix))}</span></span></li>'
        for check in checks
    )
    return f'<ul class="checks">{lines}</ul>'


def picked_rate(plan: PlanView, config: TrainConfig, t: Translator) -> str:
    """What a learning rate of 0 stands for with the chosen method; nothing where one is set."""
    if config.optim.learning_rate:
        return ""
    method = t.sentence(methods.get(config.adapter.method).title)
    return f'<p class="caption">{esc(t("train.picked_rate", rate=f"{plan.learning_rate:.2g}", method=method))}</p>'


def cannot_plan(error: StudioError, t: Translator) -> str:
    """What stands in place of the plan while the form has a mistake."""
    return callout("error", t.sentence(error.what), t.sentence(error.fix), t)


def start_label(plan: PlanView, t: Translator) -> str:
    """The start button's words: what it does, or why it cannot."""
    blocking = next((check for check in plan.checks if check.level == "error"), None)
    return t("train.start") if blocking is None else t("train.blocked", reason=t.sentence(blocking.text).rstrip(".。"))
