"""Fused forward and backward passes of what a decoder layer is made of, and the fast path that puts them into a model.

Each op stands beside its plain reference, which is the definition that the tests hold it to. `fast_path.py` is the way
in; nothing here changes what a model computes, only in which order, and what is kept for the backward pass.
"""
