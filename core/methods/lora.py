"""LoRA: a trained low-rank matrix beside every frozen weight."""

from core.methods.method import Method, methods


@methods.register("lora")
class LoRA(Method):
    """The plain method, and the one to beat."""

    title = "LoRA"
    hint = "the place to start"
    summary = "Trains a small low-rank matrix beside each frozen weight. The place to start."
    paper = "Hu et al. 2021, arXiv 2106.09685"
    stores_pairs = True
