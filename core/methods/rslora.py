"""rsLoRA: LoRA scaled by alpha / sqrt(rank)."""

from core.methods.method import Method, methods


@methods.register("rslora")
class RsLoRA(Method):
    """For ranks of 32 and above."""

    title = "rsLoRA"
    hint = "for high ranks"
    summary = "LoRA scaled by alpha / sqrt(rank), so that ranks of 32 and more keep learning."
    paper = "Kalajdzievski 2023, arXiv 2312.03732"
    stores_pairs = True
