"""Train: the form on the left, and on the right a plan that tells what the run will take before it starts."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from core.config import TrainConfig
from core.errors import ConfigError, StudioError
from core.methods import methods
from studio.service import Studio
from studio.spec import to_yaml
from studio.views import ModelView, PlanView
from ui import forms
from ui.command_line import train_command
from ui.fragments import esc, heading
from ui.handlers import ONCE_FILLED, Updates, guarded, once_filled, tell
from ui.i18n import Translator
from ui.job_file import FILE_TYPES, draft_of_file, tell_loaded
from ui.method_fields import METHOD, MethodFields, fitting, target_label
from ui.page import Choice, Page, Tab, known_or_first, new_key, remembered, request_key, unchecked
from ui.plan_card import cannot_plan, picked_rate, plan_card, start_label
from ui.presets import PRESETS, preset_of, sets_rank

ATTENTION = "attention"
UNFILLED = "-"  # in place of what is chosen, before the form is filled
_RUN = "run"  # the section of TrainConfig's own settings


class TrainTab(Tab):
    """Four choices and four numbers in sight, everything else folded; Start says why when it cannot start."""

    id = "train"

    def __init__(self, studio: Studio, t: Translator) -> None:
        super().__init__(studio, t)
        # Outside the tab's own context: Gradio fills what is inside a tab only once the tab is opened.
        self.draft = remembered({}, "train-draft")
        self.key = request_key("train-key")
        self.method = MethodFields(t)

    def layout(self) -> None:
        """Form left, plan right."""
        self.fields = {spec.name: spec for spec in forms.fields()}
        self.inputs: dict[str, gr.components.Component] = {}
        with gr.Row(elem_classes="split"):
            with gr.Column(scale=7, min_width=340):
                self._layout_basic()
                with self.method.of_places(elem_classes="card"):
                    self._layout_targets()
                self._layout_advanced()
            with gr.Column(scale=5, min_width=340, elem_classes="card sticky"):
                self._layout_plan()

    def _layout_basic(self) -> None:
        t = self.t
        with gr.Column(elem_classes="card"):
            gr.HTML(heading(t("train.title"), t("train.text")))
            with gr.Row():
                self.dataset = unchecked(
                    gr.Dropdown([], label=t("train.dataset"), elem_id="train-dataset", filterable=False)
                )
                self.model = unchecked(gr.Dropdown([], label=t("train.model"), elem_id="train-model", filterable=False))
            with gr.Row():
                self.name = gr.Textbox(
                    label=t("train.name"),
                    placeholder=t("train.name_hint"),
                    elem_id="train-name",
                    max_length=120,
                    scale=2,
                )
                presets = [(t(f"preset.{name}"), name) for name in PRESETS]
                self.preset = gr.Radio(
                    presets, value="balanced", label=t("train.preset"), elem_id="train-preset", scale=3
                )
            self.method.layout()
            self.inputs |= self.method.inputs
            with gr.Row(elem_classes="numbers"):
                for spec in self.fields.values():
                    if spec.basic:
                        self.inputs[spec.name] = forms.component(spec, t)
            self.rate = gr.HTML(elem_id="train-rate")

    def _layout_targets(self) -> None:
        t = self.t
        gr.HTML(heading(t("train.targets_title"), t("train.targets_text")))
        self.targets = unchecked(
            gr.CheckboxGroup(
                [], label=t("train.targets"), elem_id="train-targets", elem_classes="targets", show_label=False
            )
        )
        with gr.Row(elem_classes="buttons"):
            self.all_linear = gr.Button(t("train.all_linear"), elem_id="train-all-linear", size="sm")
            self.attention = gr.Button(t("train.attention_only"), elem_id="train-attention-only", size="sm")

    def _layout_advanced(self) -> None:
        t = self.t
        with gr.Accordion(t("train.advanced"), open=False, elem_id="train-advanced", elem_classes="card"):
            for section in ("", "data", "optim", "adapter"):
                gr.HTML(f"<h3>{esc(t(f'train.section_{section or _RUN}'))}</h3>")
                with gr.Row(elem_classes="numbers"):
                    for spec in self.fields.values():
                        if spec.section == section and spec.name not in self.inputs:
                            self.inputs[spec.name] = forms.component(spec, t)

    def _layout_plan(self) -> None:
        t = self.t
        gr.HTML(heading(t("plan.title"), t("plan.text")))
        self.plan = gr.HTML(elem_id="train-plan")
        self.message = gr.HTML(elem_id="train-message")
        self.start = gr.Button(t("train.start"), variant="primary", size="lg", elem_id="train-start")
        with gr.Accordion(t("train.same_elsewhere"), open=False, elem_id="train-export"):
            self.load = gr.UploadButton(t("train.load"), file_types=FILE_TYPES, size="sm", elem_id="train-load")
            self.command = gr.Code(
                label=t("train.command"), language="shell", interactive=False, lines=2, elem_id="train-command",
                buttons=["copy"], show_line_numbers=False, wrap_lines=True,
            )  # fmt: skip
            self.yaml = gr.Code(
                label=t("train.yaml"), language="yaml", interactive=False, elem_id="train-yaml", max_lines=18,
                buttons=["copy", "download"], show_line_numbers=False,
            )  # fmt: skip

    # -- events

    @property
    def form(self) -> list[Any]:
        """The inputs of every form handler: dataset, model, name, targets, then the settings."""
        return [self.dataset, self.model, self.name, self.targets, *self.inputs.values()]

    @property
    def plan_outputs(self) -> list[Any]:
        """What a change of the form renews."""
        return [self.plan, self.start, self.command, self.yaml, self.preset, self.message, self.rate]

    @property
    def method_outputs(self) -> list[Any]:
        """What a change of the method renews: its fields, and the plan."""
        return [*self.method.outputs(self.inputs), *self.plan_outputs]

    def wire(self, page: Page) -> None:
        """Connect form, plan and start."""
        handlers = (once_filled(self.studio, one) for one in (self._plan, self._method_chosen, self._model_chosen))
        plan, method_chosen, model_chosen = map(guarded(self.message, self.t), handlers)
        inputs: list[Any] = [part for name, part in self.inputs.items() if name != METHOD]
        changes = [part.change for part in [self.dataset, self.name, self.targets, *inputs]]
        self.listen(self._on(changes), plan, self.form, self.plan_outputs, js=ONCE_FILLED, trigger_mode="always_last")
        method: Any = self.inputs[METHOD]
        self.listen(method.change, method_chosen, self.form, self.method_outputs, js=ONCE_FILLED)
        choices = [self.targets, *self.plan_outputs]
        self.listen(self.model.change, model_chosen, self.form, choices, js=ONCE_FILLED)
        self._wire_choices()
        self._wire_draft([*changes, method.change])
        self._wire_start(page)

    def _wire_choices(self) -> None:
        preset = [self.inputs[name] for name in ("epochs", "r", "lora_alpha", "eval_every")]
        self.listen(self.all_linear.click, lambda model: self._tick(model, ""), [self.model], [self.targets])
        self.listen(self.attention.click, lambda model: self._tick(model, ATTENTION), [self.model], [self.targets])
        self.listen(self.preset.input, self._preset, [self.preset, *self.form], preset)

    def _wire_draft(self, changes: list[Any]) -> None:
        """Keep the form in the browser, without a word to the server, once the last draft has been restored."""
        # Only what differs from the defaults is kept, so that a later version's defaults come through.
        usual = json.dumps({name: self.fields[name].default for name in self.inputs})
        script = (
            "(draft, dataset, model, name, targets, ...values) => { if (!window.loraStudioRestored) return draft;"
            f" const usual = {usual}; const filled = Object.keys(usual).map((key, place) => [key, values[place]]);"
            " const changed = Object.fromEntries(filled.filter(([key, value]) => value !== usual[key]));"
            " return {dataset, model, name, targets, values: changed}; }"
        )
        options = {"js": script, "show_progress": "hidden", "api_visibility": "private"}
        gr.on(changes, None, inputs=[self.draft, *self.form], outputs=[self.draft], **options)

        def load(path: str, *chosen: str | None) -> Updates:
            draft, config = draft_of_file(self.studio, path, chosen, self.t)
            tell_loaded(config, self.t)
            return self.restored(draft)

        given, safe = [self.load, self.dataset, self.model], guarded(self.message, self.t)
        self.listen(self.load.upload, safe(load), given, self.restored_outputs)

    def _wire_start(self, page: Page) -> None:
        safe = guarded(self.message, self.t)
        jobs = page.each.jobs
        started = [self.key, self.message, page.job, *page.go_outputs, *jobs.live_outputs]

        def start(key: str, *form: Any) -> Updates:
            job_id = self._start(key, form)
            return {
                self.key: new_key(), page.job: job_id, **page.go("jobs"), **jobs.live(job_id),
            }  # fmt: skip

        # One click at a time, and the key makes even a click that slips through the same job.
        self.listen(
            self.start.click, safe(start), [self.key, *self.form], started,
            trigger_mode="once", show_progress="minimal", show_progress_on=[self.start],
        )  # fmt: skip

    def _on(self, triggers: list[Any]) -> Any:
        def register(handler: Any, **options: Any) -> Any:
            return gr.on(triggers, handler, **options)

        return register

    # -- filling the form

    def restored(self, draft: dict[str, Any]) -> Updates:
        """The whole form as this browser left it, for a page that just loaded; the newest data where there is none."""
        draft = draft if isinstance(draft, dict) else {}
        kept, name = draft.get("values", {}), draft.get("name", "")
        values = {key: kept.get(key, self.fields[key].default) for key in self.inputs}
        if values[METHOD] not in methods.names():
            values[METHOD] = self.fields[METHOD].default  # of a later version
        datasets, models = self._choices()
        dataset = known_or_first(draft.get("dataset") or self._last_trained(), datasets)
        model = known_or_first(draft.get("model"), models)
        wanted = draft.get("targets") if draft.get("model") == model else None
        group, ticked = self._targets_of(self._model(model), wanted)
        return {
            **self.refreshed(dataset, model), self.targets: group, self.name: name,
            **{self.inputs[key]: value for key, value in values.items()},
            **self.method.shown(values[METHOD], self.inputs, values),
            **self._plan(dataset, model, name, ticked, *values.values()),
        }  # fmt: skip

    def renewed(self, dataset_id: str | None, model_id: str | None) -> Any:
        """`refreshed` for a form that is filled already."""
        return gr.skip() if UNFILLED in (dataset_id, model_id) else self.refreshed(dataset_id, model_id)

    def refreshed(self, dataset_id: str | None, model_id: str | None) -> Updates:
        """Today's datasets and models to choose from; what was chosen stays. What was typed is left alone."""
        datasets, models = self._choices()
        return {
            self.dataset: gr.Dropdown(datasets, value=known_or_first(dataset_id, datasets)),
            self.model: gr.Dropdown(models, value=known_or_first(model_id, models)),
        }

    def _last_trained(self) -> str | None:
        """The dataset of the newest training, which a user may want again rather than what was added since."""
        return next((job.spec.get("dataset_id") for job in self.studio.jobs(limit=50) if job.kind == "train"), None)

    def _choices(self) -> tuple[list[Choice], list[Choice]]:
        models = sorted(self.studio.models(), key=lambda model: model.kind != "base")
        return [(item.name, item.id) for item in self.studio.datasets()], [(item.name, item.id) for item in models]

    @property
    def restored_outputs(self) -> list[Any]:
        """The components that `restored` fills."""
        return [*dict.fromkeys([*self.form, *self.method_outputs])]

    def _model(self, model_id: str | None) -> ModelView | None:
        return next((model for model in self.studio.models() if model.id == model_id), None)

    def _targets_of(self, model: ModelView | None, wanted: list[str] | None) -> tuple[gr.CheckboxGroup, list[str]]:
        targets = model.targets if model else ()
        ticked = [target.name for target in targets if target.selected_by_default]
        if wanted is not None:
            ticked = [target.name for target in targets if target.name in wanted]
        choices = [(target_label(target), target.name) for target in targets]
        return gr.CheckboxGroup(choices, value=ticked), ticked

    def _model_chosen(self, dataset: str, model: str, name: str, targets: list[str], *values: Any) -> Updates:
        chosen = self._model(model)
        fits = chosen is not None and bool(targets) and set(targets) <= {target.name for target in chosen.targets}
        group, ticked = self._targets_of(chosen, targets if fits else None)
        return {self.targets: group, **self._plan(dataset, model, name, ticked, *values)}

    def _method_chosen(self, dataset: str, model: str, name: str, targets: list[str], *values: Any) -> Updates:
        settings = dict(zip(self.inputs, values, strict=True))
        changed = fitting(settings[METHOD], settings)
        settings |= changed
        fields = self.method.shown(settings[METHOD], self.inputs, changed)
        return {**fields, **self._plan(dataset, model, name, targets, *settings.values())}

    def _tick(self, model_id: str, group: str) -> Updates:
        model = self._model(model_id)
        targets = model.targets if model else ()
        chosen = [x.name for x in targets if (x.group == group if group else x.selected_by_default)]
        return {self.targets: chosen}

    def _preset(self, name: str, *form: Any) -> Updates:
        epochs, rank, evaluations = PRESETS[name]
        every = 0
        dataset, model, run, targets, *values = form
        settings = {**dict(zip(self.inputs, values, strict=True)), "epochs": epochs, "eval_every": 0}
        if sets_rank(settings[METHOD]):
            if settings["r"] and settings["lora_alpha"] == 2 * settings["r"]:  # as usual: then it goes with the rank
                settings["lora_alpha"] = 2 * rank
            settings["r"] = rank
        if evaluations:
            plan = self._try_plan(dataset, model, run, targets, settings)
            every = max(1, round(plan.steps / evaluations)) if isinstance(plan, PlanView) else 0
        changed = {"epochs": epochs, **{name: settings[name] for name in ("r", "lora_alpha")}, "eval_every": every}
        return {self.inputs[key]: value for key, value in changed.items()}

    # -- planning and starting

    def _config(self, model_id: str | None, ticked: list[str], settings: dict[str, Any]) -> TrainConfig:
        model = self._model(model_id)
        usual = {x.name for x in model.targets if x.selected_by_default} if model else set()
        # The word keeps its meaning when the spec is run again on another model; a list of names would not.
        targets: Any = "all-linear" if usual and set(ticked or ()) == usual else list(ticked or ())
        return forms.config_from(settings, targets)

    def _try_plan(
        self, dataset: str | None, model: str | None, name: str, ticked: list[str], settings: dict[str, Any]
    ) -> PlanView | StudioError:
        try:
            if not dataset or not model:
                missing = "dataset" if not dataset else "model"
                return ConfigError(self.t(f"train.no_{missing}"), self.t(f"train.no_{missing}_fix"))
            return self.studio.plan(model, dataset, self._config(model, ticked, settings))
        except StudioError as error:
            return error

    def _plan(self, dataset: str | None, model: str | None, name: str, ticked: list[str], *values: Any) -> Updates:
        settings = dict(zip(self.inputs, values, strict=True))
        plan = self._try_plan(dataset, model, name, ticked, settings)
        if not isinstance(plan, PlanView):
            label = self.t("train.blocked", reason=self.t.sentence(plan.what).rstrip(".。"))
            return {
                self.plan: cannot_plan(plan, self.t), self.start: gr.Button(label, interactive=False),
                self.command: "", self.yaml: "", self.preset: preset_of(settings), self.message: "", self.rate: "",
            }  # fmt: skip
        config = self._config(model, ticked, settings)
        return {
            self.plan: plan_card(plan, self.t),
            self.start: gr.Button(start_label(plan, self.t), interactive=plan.can_start),
            self.command: train_command(model or "", dataset or "", name or "", config),
            self.yaml: to_yaml(name or "", model or "", dataset or "", config),
            self.preset: preset_of(settings),
            self.message: "",
            self.rate: picked_rate(plan, config, self.t),
        }

    def _start(self, key: str, form: tuple[Any, ...]) -> str:
        dataset, model, name, ticked, *values = form
        if not dataset or not model:
            missing = "dataset" if not dataset else "model"
            raise ConfigError(self.t(f"train.no_{missing}"), self.t(f"train.no_{missing}_fix"))
        config = self._config(model, ticked, dict(zip(self.inputs, values, strict=True)))
        job = self.studio.train(model, dataset, config, name=(name or "").strip(), idempotency_key=key)
        tell(self.t("train.started"), self.t)
        return job.id
