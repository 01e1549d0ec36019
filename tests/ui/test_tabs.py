"""The tabs on an empty studio and on the edge: why Start is disabled, which job is shown, what survives a restart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from core.config import OptimConfig, TrainConfig, to_dict
from core.errors import ConfigError
from studio.service import Studio
from studio.views import Check, JobView, PlanView, QueueView, RemedyView
from tests.scenarios.plugin import Say
from ui.handlers import explain, once_filled, tell
from ui.i18n import Translator
from ui.job_card import failure_box, figures, job_table, quiet_box, result_box, verification
from ui.model_cards import work_cards
from ui.page import unchecked
from ui.plan_card import checklist, picked_rate, plan_card, start_label
from ui.presets import PRESETS, preset_of
from ui.quantities import duration_text
from ui.queue_bar import in_order, queue_bar
from ui.tabs.home import HomeTab
from ui.tabs.jobs import ACTIONS, JobsTab, _pick
from ui.tabs.train import TrainTab


def job(job_id: str = "j1", **changes: Any) -> JobView:
    """A job with nothing remarkable about it but `changes`."""
    plain: dict[str, Any] = {
        "kind": "train", "name": "run", "state": "queued", "desired": "run", "step": 0, "total_steps": 10,
        "message": "",
        "loss": None, "eval_loss": None, "best_eval_loss": None, "best_step": None, "tokens_per_second": None,
        "eta_s": None, "device": "cpu", "attempt": 1, "created_at": 0.0, "started_at": None, "finished_at": None,
        "error_what": "", "error_fix": "", "spec": {}, "result": {},
    }  # fmt: skip
    return JobView(id=job_id, **{**plain, **changes})


def plan(*checks: Check) -> PlanView:
    return PlanView(
        checks, 95, 5, 36, 4000, 1_000_000, 100_000_000, None, {"weights": 2**30}, 2**30, 2**32, 2**20, "cpu",
        trainable_by_target={"q_proj": 500_000},
    )  # fmt: skip


@pytest.fixture
def blocks() -> Iterator[None]:
    with gr.Blocks():
        yield


# -- train


@pytest.mark.usefixtures("blocks")
def test_without_data_start_is_disabled_and_says_why(studio: Studio, t: Translator) -> None:
    tab = TrainTab(studio, t)
    tab.layout()
    shown = tab.restored({})
    assert shown[tab.start].interactive is False
    assert t("train.no_dataset").rstrip(".。") in shown[tab.start].value
    assert t("train.no_dataset_fix") in shown[tab.plan]


def test_a_form_that_is_still_filled_is_not_answered(studio: Studio, tmp_path: Path) -> None:
    handler = once_filled(studio, lambda *form: {"plan": form})
    assert handler(None, "model") == {"plan": (None, "model")}  # there is no dataset to fill it with
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\ngood,1\nbad,0\n")
    added = studio.add_dataset(rows)
    assert handler(None, "model") == {}
    assert handler(added.id, "model") == {"plan": (added.id, "model")}


@pytest.mark.usefixtures("blocks")
def test_a_damaged_draft_is_no_harm(studio: Studio, t: Translator) -> None:
    tab = TrainTab(studio, t)
    tab.layout()
    for draft in (None, [], "x", {"values": {"gone": 3}, "dataset": "gone", "targets": ["gone"]}):
        shown = tab.restored(draft)  # type: ignore[arg-type]
        assert shown[tab.inputs["r"]]["value"] == 16


def test_presets_are_recognised_and_the_middle_one_is_the_default() -> None:
    for name, (epochs, rank, _) in PRESETS.items():
        assert preset_of({"epochs": epochs, "r": rank, "method": "lora"}) == name
    assert preset_of({"epochs": 3, "r": 12, "method": "lora"}) is None
    assert preset_of({"epochs": 3, "r": 12, "method": "adalora"}) == "balanced"
    assert PRESETS["balanced"] == (3.0, 16, 0)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(("r", "alpha", "wanted"), [(16, 32, 16), (16, 5, 5), (None, 32, 32)])
def test_a_preset_takes_alpha_along_where_it_was_twice_the_rank(
    studio: Studio, t: Translator, r: int | None, alpha: int, wanted: int
) -> None:
    tab = TrainTab(studio, t)
    tab.layout()
    values = [{"r": r, "lora_alpha": alpha}.get(name, tab.fields[name].default) for name in tab.inputs]
    changed = tab._preset("quick", None, None, "", [], *values)
    assert (changed[tab.inputs["r"]], changed[tab.inputs["lora_alpha"]]) == (8, wanted)


def test_start_label_names_the_first_error(t: Translator) -> None:
    warned = plan(Check("warning", "Few rows."), Check("ok", "Fine."))
    assert start_label(warned, t) == t("train.start")
    blocked = plan(Check("warning", "Few rows."), Check("error", "Rank 500 is too high."), Check("error", "No disk."))
    assert "Rank 500 is too high" in start_label(blocked, t)


def test_plan_card_tells_figures_and_checks_in_words(t: Translator) -> None:
    card = plan_card(plan(Check("error", "Bad <b>.", "Mend it.")), t)
    for words in ("1.0 M", "1.00 %", t("plan.time_unknown"), "500.0 k", t("level.error"), "Mend it.", "&lt;b&gt;"):
        assert words in card
    assert checklist((), t) == '<ul class="checks"></ul>'


@pytest.mark.usefixtures("blocks")
def test_choices_of_an_earlier_process_are_passed_on() -> None:
    assert unchecked(gr.Dropdown([], label="x")).preprocess("made before the restart") == "made before the restart"
    with pytest.raises(gr.Error):  # what Gradio does by itself
        gr.Dropdown([], label="x").preprocess("made before the restart")


# -- jobs


def test_the_chosen_job_is_shown_else_the_one_at_work_else_the_newest() -> None:
    jobs = [job("new"), job("busy", state="running"), job("old", state="succeeded")]
    assert [found.id for wanted in ("old", "", "gone") if (found := _pick(jobs, wanted))] == ["old", "busy", "busy"]
    newest = _pick([job("new"), job("old")], "")
    assert newest is not None and newest.id == "new"
    assert _pick([], "x") is None


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("state", sorted(ACTIONS))
def test_only_what_a_state_allows_is_offered(studio: Studio, t: Translator, state: str) -> None:
    tab = JobsTab(studio, t)
    tab.layout()
    offered = tab._offered(job(state=state, result={"adapter_id": "a"}))
    visible = {name for name, button in tab.buttons.items() if offered[button].visible}
    assert visible == {*ACTIONS[state], *(("compare", "merge") if state == "succeeded" else ())}


@pytest.mark.usefixtures("blocks")
def test_a_job_on_its_way_to_a_stop_can_still_be_cancelled(studio: Studio, t: Translator) -> None:
    tab = JobsTab(studio, t)
    tab.layout()
    offered = tab._offered(job(state="running", desired="stop"))
    assert offered[tab.buttons["cancel"]].interactive and not offered[tab.buttons["pause"]].interactive


@pytest.mark.usefixtures("blocks")
def test_an_empty_studio_shows_friendly_words_everywhere(studio: Studio, t: Translator) -> None:
    home, jobs = HomeTab(studio, t), JobsTab(studio, t)
    home.layout()
    jobs.layout()
    assert t("home.no_jobs") in home.live("")[home.board]
    assert t("home.train_not_ready") in home.live("")[home.board]
    assert t("home.no_jobs") in jobs.live("gone")[jobs.table]


def test_failure_box_tells_cause_and_remedy(t: Translator) -> None:
    remedies = (RemedyView("rate", "Lower it.", {"optim.learning_rate": 1e-5}), RemedyView("again", "Again.", {}))
    failure = {"kind": "diverged", "evidence": "nan <here>"}
    broken = job(state="failed", error_what="It <broke>.", error_fix="Glue it.", failure=failure)
    box = failure_box(broken, remedies, t)
    assert "nan &lt;here&gt;" in box and t("jobs.evidence") in box
    assert box.count('data-id="j1"') == 2 and 'data-action="fix:rate"' in box and t("jobs.fix_again") in box
    assert "It &lt;broke&gt;." in box and "Glue it." in box
    assert t("jobs.failed") in failure_box(job(state="failed"), (), t)
    assert failure_box(job(state="running"), (), t) == ""


@pytest.mark.scenario(16)
def test_a_job_that_hangs_is_said_to_and_can_be_restarted(t: Translator, figure: Say) -> None:
    steps = {"state": "running", "step": 50, "total_steps": 100, "eta_s": 500.0}  # 10 s a step
    assert quiet_box(job(**steps, idle_s=199.0), t) == ""
    box = quiet_box(job(**steps, idle_s=260.0), t)
    assert t("jobs.quiet", time=duration_text(260.0, t)) in box and 'data-action="restart"' in box
    assert quiet_box(job(**steps, idle_s=260.0, desired="cancel"), t) == "", "what was asked for is on its way"
    assert quiet_box(job(state="running", idle_s=1000.0), t) == "", "loading a model takes its time"
    assert quiet_box(job(state="succeeded", idle_s=None), t) == ""
    if t.language == "en":
        figure(f"the page says after 20 steps' time: {t('jobs.quiet', time=duration_text(260.0, t))}")


def test_the_queue_is_shown_in_its_order_with_arrows(t: Translator) -> None:
    jobs = [job("new"), job("old"), job("done", state="succeeded"), job("busy", state="running")]
    queue = QueueView(("old", "new"), True, 2)
    assert [item.id for item in in_order(jobs, queue)] == ["busy", "old", "new", "done"]
    table = job_table(jobs, "", queue, t)
    assert table.count('data-action="up"') == table.count('data-action="down"') == 1
    bar = queue_bar(queue, t)
    assert 'data-action="resume-queue"' in bar and t("queue.per_device", count=2) in bar
    assert 'data-action="pause-queue"' in queue_bar(QueueView((), False, 1), t)


@pytest.mark.usefixtures("blocks")
def test_buttons_in_the_table_steer_the_queue(studio: Studio, t: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.job_desk.ensure_scheduler", lambda workspace: False)
    tab = JobsTab(studio, t)
    tab.layout()
    first, second = (studio.submit("selftest", name, {}).id for name in ("first", "second"))
    assert tab._pressed(second, "up", "chosen") == "chosen"
    assert studio.board.queue().order == (second, first)
    assert tab._pressed(first, "", "chosen") == first
    tab._pressed("queue", "pause-queue", "")
    tab._pressed("queue", "more", "")
    assert studio.board.queue().is_paused and studio.board.queue().jobs_per_device == 2
    tab._pressed("queue", "resume-queue", "")
    tab._pressed("queue", "fewer", "")
    assert not studio.board.queue().is_paused and studio.board.queue().jobs_per_device == 1


def test_result_box_offers_the_download_of_what_was_made(t: Translator) -> None:
    trained = result_box(job(state="succeeded", result={"adapter_id": "a1"}), t)
    merged = result_box(
        job(kind="merge", state="succeeded", result={"model_id": "m1", "verification": {"tokens": 8}}), t
    )
    assert 'href="/files/adapter/a1.zip"' in trained and 'href="/files/model/m1.zip"' in merged
    assert result_box(job(state="running"), t) == ""


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(("kind", "name"), [("train", "adapter_id"), ("merge", "model_id")])
def test_nothing_is_offered_of_what_was_deleted(studio: Studio, t: Translator, kind: str, name: str) -> None:
    tab = JobsTab(studio, t)
    tab.layout()
    left = tab._without_deleted(job(kind=kind, state="succeeded", result={name: "gone", "verification": {}}))
    assert left.result == {"verification": {}}
    assert t("jobs.deleted") in result_box(left, t) and "/files/" not in result_box(left, t)
    offered = tab._offered(left)
    assert not any(offered[tab.buttons[button]].visible for button in ("compare", "merge"))


def test_result_box_says_when_training_made_it_worse(t: Translator) -> None:
    run = job(state="succeeded", result={"adapter_id": "a1"}, best_eval_loss=10.8)
    worse = t("jobs.done_worse", before="3.1700", after="10.8000")
    assert worse in result_box(run, t, 3.17) and "/files/adapter/a1.zip" in result_box(run, t, 3.17)
    for before in (None, 10.8, 12.0):
        shown = result_box(run, t, before)
        assert t("jobs.done_worse_next") not in shown and t("jobs.done_train") in shown


def test_the_form_says_what_a_learning_rate_of_nothing_stands_for(t: Translator) -> None:
    made = dataclasses.replace(plan(), learning_rate=0.00132)
    assert "0.0013" in picked_rate(made, TrainConfig(), t) and "LoRA" in picked_rate(made, TrainConfig(), t)
    assert picked_rate(made, TrainConfig(optim=OptimConfig(learning_rate=1e-4)), t) == ""


def test_figures_show_progress_and_time_left(t: Translator) -> None:
    shown = figures(job(state="running", step=5, eta_s=61.0, started_at=1.0, loss=0.5, message="Training"), t)
    for words in ('aria-valuenow="50"', t("time.minutes", m=1, s=1), "0.5000", t.sentence("Training")):
        assert words in shown


def test_a_training_that_stopped_early_shows_how_far_it_came(t: Translator) -> None:
    stopped = job(state="succeeded", step=3, total_steps=10)
    assert 'aria-valuenow="30"' in figures(stopped, t)
    assert 'aria-valuenow="100"' in figures(job(kind="merge", state="succeeded", step=3), t)


def test_a_paused_job_tells_how_long_it_has_worked(t: Translator) -> None:
    paused = figures(job(state="paused", started_at=1000.0, progress_at=1061.0), t)
    assert t("time.minutes", m=1, s=1) in paused


@pytest.mark.usefixtures("blocks")
def test_only_a_training_has_settings_to_show(studio: Studio, t: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.job_desk.ensure_scheduler", lambda workspace: False)
    tab = JobsTab(studio, t)
    tab.layout()
    added = studio.add_model("starter")
    shown = tab.live(added.id)
    assert shown[tab.config] == "" and shown[tab.config_box].visible is False
    settings = {"model_id": "m", "dataset_id": "d", "train": to_dict(TrainConfig())}
    shown = tab.live(studio.submit("train", "run", settings).id)
    assert "max_length" in shown[tab.config] and shown[tab.config_box].visible


def test_toasts_and_devices_are_named_in_the_pages_language(monkeypatch: pytest.MonkeyPatch) -> None:
    toasts: list[dict[str, Any]] = []
    monkeypatch.setattr("gradio.helpers.log_message", lambda *words, **about: toasts.append(about))
    t = Translator("zh")
    explain(ConfigError("There is no remedy.", "Try."), t)
    tell("好", t)
    assert [toast["title"] for toast in toasts] == [t("level.warning"), t("level.info")]
    assert t.sentence("AMD EPYC 9B14 (2 cores)") == "AMD EPYC 9B14（2 核）"


@pytest.mark.usefixtures("blocks")
def test_a_merge_is_chained_once(studio: Studio, t: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.job_desk.ensure_scheduler", lambda workspace: False)
    tab = JobsTab(studio, t)
    tab.layout()
    run = studio.submit("train", "客服", {"train": {}})
    assert tab._offered(run)[tab.buttons["chain"]].visible
    for _ in range(2):
        tab._merge_after(run)
    (merge,) = (one for one in studio.jobs() if one.kind == "merge")
    assert merge.name == t("models.merged_name", name="客服")
    assert not tab._offered(run)[tab.buttons["chain"]].visible
    studio.cancel_job(merge.id)
    assert tab._offered(run)[tab.buttons["chain"]].visible
    tab._merge_after(run)
    assert [one.state for one in studio.jobs() if one.kind == "merge"].count("queued") == 1


def test_figures_call_rows_rows_while_they_become_tokens(t: Translator) -> None:
    rows, step = f">{t('jobs.rows_prepared')}<", f">{t('jobs.step')}<"
    preparing = figures(job(state="running", step=64, total_steps=320, message="Tokenising 320 rows"), t)
    training = figures(job(state="running", step=64, total_steps=320, message="Training"), t)
    assert rows in preparing and step not in preparing and "64 / 320" in preparing
    assert step in training and rows not in training


def test_unknown_kinds_of_jobs_are_shown_by_their_name(t: Translator) -> None:
    from ui.job_card import job_table

    assert "distill" in job_table([job(kind="distill")], "", QueueView((), False, 1), t)


def test_verification_shows_known_figures_only(t: Translator) -> None:
    shown = verification({"top1_agreement": 0.9609, "unrounded_difference": 0.00283, "adapter_id": "xyz"}, t)
    assert "96.1 %" in shown and "0.0028" in shown and "xyz" not in shown
    assert verification({}, t) == ""


def test_work_cards_show_what_is_under_way_and_a_fresh_failure(t: Translator) -> None:
    assert work_cards([], t) == ""
    assert work_cards([job(kind="merge", state="succeeded")], t) == ""
    assert "run" in work_cards([job(kind="merge", state="running")], t)
    failed = job(kind="merge", state="failed", error_what="No room.")
    assert "No room." in work_cards([failed], t) and f'data-id="{failed.id}" data-action="dismiss"' in work_cards(
        [failed], t
    )
    assert work_cards([job(kind="merge", state="succeeded"), failed], t) == ""
