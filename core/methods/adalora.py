"""AdaLoRA: a budget of ranks that goes to the layers that use it."""

from dataclasses import dataclass

from core.config import AdapterConfig, Checked, option
from core.errors import ConfigError
from core.methods.method import LORA_SETTINGS, PLACES, Method, methods


@dataclass(frozen=True)
class AdaLoRAOptions(Checked):
    """What only AdaLoRA has; names are PEFT's. Steps are optimizer steps."""

    target_r: int = option(
        0, "Average rank at the end; `r` is the one at the start. 0 leaves two thirds.", minimum=0, maximum=4096
    )
    tinit: int = option(
        0, "Steps before the first rank is taken away. 0 picks a tenth of the run.", minimum=0, maximum=10_000_000
    )
    tfinal: int = option(
        0, "Steps at the end with the final ranks. 0 picks 30 % of the run.", minimum=0, maximum=10_000_000
    )
    delta_t: int = option(
        0, "Steps between two rounds of taking ranks away. 0 picks about 100 rounds.", minimum=0, maximum=1_000_000
    )
    beta1: float = option(0.85, "Memory of the importance of a number.", minimum=0.01, maximum=0.9999)
    beta2: float = option(0.85, "Memory of how uncertain that importance is.", minimum=0.01, maximum=0.9999)
    orth_reg_weight: float = option(
        0.5, "Pull of the two matrices towards having directions at right angles.", minimum=0.0, maximum=1000.0
    )


@dataclass(frozen=True)
class AdaLoRASchedule:
    """The options with every automatic value worked out for a run."""

    target_r: int
    tinit: int
    tfinal: int
    delta_t: int
    total_steps: int

    @classmethod
    def of(cls, options: AdaLoRAOptions, r: int, total_steps: int) -> "AdaLoRASchedule":
        """The schedule of a run of that many optimizer steps that starts at rank `r`."""
        return cls(
            target_r=options.target_r or max(1, 2 * r // 3),
            tinit=options.tinit or total_steps // 10,
            tfinal=options.tfinal or round(0.3 * total_steps),
            delta_t=options.delta_t or max(1, total_steps // 100),
            total_steps=total_steps,
        )

    def budget(self, step: int, first: int, last: int) -> int:
        """Directions left in all layers after optimizer step `step`, `first` at the start and `last` at the end."""
        if step <= self.tinit:
            return first
        falling = self.total_steps - self.tfinal - self.tinit
        if step > self.total_steps - self.tfinal:
            return last
        return int(last + (first - last) * (1 - (step - self.tinit) / falling) ** 3)


@methods.register("adalora")
class AdaLoRA(Method):
    """Ranks by importance."""

    title = "AdaLoRA"
    summary = "Starts with more rank than it may keep and takes it from the layers that use it least."
    paper = "Zhang et al. 2023, arXiv 2303.10512"
    options = AdaLoRAOptions
    uses = (LORA_SETTINGS | PLACES) - {"use_rslora", "target_parameters", "rank_pattern", "alpha_pattern"}
    reasons = {"rank_pattern": "it decides on the ranks itself"}
    layers = frozenset({"linear", "conv1d"})
    suggested = {"r": 12}
    learning_rate_factor = 2.0

    @classmethod
    def check(cls, config: AdapterConfig) -> None:
        """It starts with more rank than it ends with."""
        super().check(config)
        target = AdaLoRAOptions(**config.method_options).target_r
        if target > config.r:
            raise ConfigError(f"target_r {target} is above the rank {config.r} it starts with.", "Lower target_r.")

    @classmethod
    def check_steps(cls, config: AdapterConfig, total_steps: int) -> None:
        """Both phases without change must leave room for the one between them."""
        schedule = AdaLoRASchedule.of(AdaLoRAOptions(**config.method_options), config.r, total_steps)
        if schedule.tinit + schedule.tfinal >= total_steps:
            raise ConfigError(
                f"AdaLoRA's first {schedule.tinit} and last {schedule.tfinal} steps leave nothing of the run's "
                f"{total_steps} in which ranks could move.",
                "Train for longer, or lower tinit and tfinal.",
            )

    @classmethod
    def layer_parameters(cls, config: AdapterConfig, r: int, d_in: int, d_out: int) -> int:
        """r (in + out + 1), with the rank it starts with."""
        return r * (d_in + d_out + 1)
