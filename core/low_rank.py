"""Products of two thin matrices, and their singular values, without forming the large matrix. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LowRank:
    """The matrix B A (out, in), as its factors A (r, in) and B (out, r) in float64."""

    a: Array
    b: Array

    @property
    def rank(self) -> int:
        """How many columns B has: the most that the rank of the product can be."""
        return int(self.a.shape[0])

    @property
    def singular_values(self) -> Array:
        """The singular values of the product, the largest first: min(r, in, out) of them."""
        return self._parts[1]

    @cached_property
    def _parts(self) -> tuple[Array, Array, Array]:
        """U (out, k), S (k) and V^T (k, in) of the product: QR of both factors, then the SVD of a small matrix."""
        q_b, r_b = np.linalg.qr(self.b)
        q_a, r_a = np.linalg.qr(self.a.T)
        u, s, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
        return q_b @ u, s, vt @ q_a.T

    def truncated(self, r: int) -> LowRank:
        """The closest product of rank r (Eckart and Young 1936), its singular values shared out evenly.

        The error in the Frobenius norm is `tail(self.singular_values, r)`.
        """
        u, s, vt = self._parts
        root = np.sqrt(s[:r])
        return LowRank(root[:, None] * vt[:r], u[:, :r] * root)

    def padded(self, r: int) -> LowRank:
        """The same product with factors of rank r, the additional ones zero."""
        missing = r - self.rank
        return LowRank(np.pad(self.a, ((0, missing), (0, 0))), np.pad(self.b, ((0, 0), (0, missing))))


def weighted_sum(products: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """The exact sum of weighted products: the factors side by side, so that the ranks add up."""
    b = [weight * product.b for weight, product in zip(weights, products, strict=True)]
    return LowRank(np.concatenate([product.a for product in products]), np.concatenate(b, axis=1))


def closest(matrix: Array, r: int) -> tuple[LowRank, Array]:
    """The rank-r product closest to a dense matrix (out, in), and all singular values of that matrix.

    From the eigenvectors of the smaller Gram matrix, which is far quicker than an SVD and right to about 1e-8 of the
    largest singular value.
    """
    is_wide = matrix.shape[0] <= matrix.shape[1]
    squares, vectors = np.linalg.eigh(matrix @ matrix.T if is_wide else matrix.T @ matrix)
    values = np.sqrt(squares[::-1].clip(min=0))
    top = vectors[:, ::-1][:, :r]
    root = np.sqrt(np.where(values[:r] > 0, values[:r], 1.0))
    if is_wide:
        return LowRank((top.T @ matrix) / root[:, None], top * root), values
    return LowRank(top.T * root[:, None], (matrix @ top) / root), values


def tail(values: Array, r: int) -> float:
    """sqrt(sum over i > r of s_i^2): the Frobenius norm of what is lost by keeping r singular values."""
    return float(np.linalg.norm(values[r:]))


def relative_tail(values: Array, r: int) -> float:
    """The same, in the norm of the whole; 0 for a zero matrix."""
    whole = tail(values, 0)
    return tail(values, r) / whole if whole else 0.0
