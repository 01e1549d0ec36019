"""The kinds of quantised base, and how many bytes a layer takes in each. Torch-free, for plans and forms."""

from __future__ import annotations

NONE, NF4, INT8 = "none", "nf4", "int8"
QUANTIZATIONS = (NONE, NF4, INT8)
NF4_BLOCK = 64  # weights that share an absmax
ABSMAX_BLOCK = 256  # absmaxes that share a scale, once they are quantised too
FLOAT_BYTES = 4


def packed_bytes(quantization: str, d_in: int, d_out: int) -> int:
    """Bytes of a quantised weight of `d_in` inputs and `d_out` outputs, scales included.

    NF4 takes 4 + 8/64 + 32/(64*256) = 4.127 bits a weight (QLoRA, section 3), int8 takes 8 and a float an output.
    """
    weights = d_in * d_out
    if quantization == INT8:
        return weights + FLOAT_BYTES * d_out
    blocks = -(-weights // NF4_BLOCK)
    return -(-weights // 2) + blocks + FLOAT_BYTES * (-(-blocks // ABSMAX_BLOCK) + 1)  # and one mean
