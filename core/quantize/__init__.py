"""Frozen bases in 4 and 8 bits (QLoRA, Dettmers et al. 2023): a plain-torch reference that runs on any device.

Adapters train beside such a base in float32; the gradient flows through the quantised weights and never into them.

    size.py      which kinds there are, and the bytes that each takes; torch-free
    nf4.py       4-bit normal floats in blocks of 64, their scales in 8 bits
    int8.py      8-bit integers with a scale for every output
    linear.py    the layers that keep such a weight and compute with its value
    kernels.py   bitsandbytes' CUDA kernel, where it is installed
    model.py     putting them into a model
    rounding.py  which base an adapter is merged into, and how far that is from the one it was trained on
"""
