"""Benchmarks that anyone can rerun; none of them is part of `make test`."""
