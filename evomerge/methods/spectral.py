"""What methods over singular vectors share: which tensors they take, decompositions, and the rule for the others.

Everything runs on one thread and in fp32, so that it gives the same bits however many cores there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from evomerge.errors import MergeFailed
from evomerge.methods.base import TensorContext
from evomerge.methods.inputs import Inputs

SMALLEST_SHARE = 1e-6  # singular values below this share of the largest stand for directions that are not there


class Svd(NamedTuple):
    """Thin singular value decomposition of matrices ``(..., m, n)``, r = min(m, n).

    Attributes:
        left: ``(..., m, r)``.
        values: ``(..., r)``, falling.
        right: ``(..., r, n)``.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def first(self, count: int) -> Svd:
        """The largest ``count`` singular values with their vectors."""
        return Svd(self.left[..., :count], self.values[..., :count], self.right[..., :count, :])

    def product(self) -> Tensor:
        """The matrices ``(..., m, n)``."""
        return (self.left * self.values[..., None, :]) @ self.right


@dataclass(frozen=True)
class MatrixInputs:
    """The inputs of one tensor, as task vectors in the shape of matrices.

    Attributes:
        inputs: the models, flat.
        shape: ``(..., m, n)`` of a linear map or a stack of them; None for anything else.
    """

    inputs: Inputs
    shape: tuple[int, ...] | None

    @classmethod
    def check(cls, base: Tensor | None, experts: Sequence[Tensor], context: TensorContext) -> MatrixInputs:
        """Check the tensors and find out what they are.

        Raises:
            ValueError: see Inputs.
        """
        inputs = Inputs.check(base, experts, needs_base=True)
        shape = tuple(experts[0].shape)
        return cls(inputs, shape if len(shape) in (2, 3) and not context.is_table and inputs.active else None)

    @property
    def rank(self) -> int:
        """``min(m, n)``."""
        assert self.shape is not None
        return min(self.shape[-2:])

    def delta(self, index: int) -> Tensor:
        """Task vector of one expert, fp32 ``(..., m, n)``."""
        assert self.shape is not None
        return (self.inputs.experts[index].float() - self.inputs.origin.float()).view(self.shape)


def decompose(matrices: Tensor) -> Svd:
    """The decomposition of fp32 matrices ``(..., m, n)``.

    Raises:
        MergeFailed: they are not finite, or the algorithm did not converge.
    """
    try:
        return Svd(*torch.linalg.svd(matrices, full_matrices=False))
    except RuntimeError as error:  # which torch's own error for this is
        raise MergeFailed("singular values cannot be computed: weights are NaN, infinite or too ill-posed") from error


def eigen(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(..., n)``, rising, and eigenvectors in columns ``(..., n, n)`` of symmetric matrices.

    Raises:
        MergeFailed: they are not finite, or the algorithm did not converge.
    """
    try:
        values, vectors = torch.linalg.eigh(matrices)
    except RuntimeError as error:
        raise MergeFailed("eigenvalues cannot be computed: weights are NaN, infinite or too ill-posed") from error
    return values, vectors


def present(svd: Svd) -> Tensor:
    """1 for the singular values ``(..., r)`` that are not next to nothing, else 0."""
    return (svd.values > SMALLEST_SHARE * svd.values[..., :1]).to(svd.values.dtype)


def polar(matrices: Tensor) -> Tensor:
    """The orthogonal factor ``(..., m, n)``, over the directions that are there.

    Where columns depend on each other, as those of near copies do, the plain factor holds arbitrary directions.
    """
    svd = decompose(matrices)
    return svd._replace(values=present(svd)).product()


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on a single thread, for the calling thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
