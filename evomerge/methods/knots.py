"""Merge in a basis that all experts share (KnOTS), with the rules of TIES or of DARE and TIES."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import MergeFailed
from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.dare_ties import DareTies
from evomerge.methods.distribution import Distribution
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import Values, read_densities, read_flag, read_number, read_numbers
from evomerge.methods.spectral import SMALLEST_SHARE, MatrixInputs, one_thread
from evomerge.methods.ties import Ties
from evomerge.methods.whole_model import WholeModelMethod


@dataclass(frozen=True)
class Aligned:
    """Task vectors of one matrix in their shared basis.

    Attributes:
        left: fp32 ``(..., m, r)``, orthonormal columns, so that ``left @ parts[i]`` is τ_i.
        parts: by active expert fp32 ``(..., r, n)``.
        zero: ``(..., r, n)``, the base in that basis.
    """

    left: Tensor
    parts: dict[int, Tensor]
    zero: Tensor

    @classmethod
    def of(cls, inputs: MatrixInputs) -> Aligned:
        """The left singular vectors of ``[τ_1 | … | τ_E]``, from its Gram matrix in fp64."""
        deltas = {index: inputs.delta(index).double() for index in inputs.inputs.active}
        products = [delta @ delta.transpose(-1, -2) for delta in deltas.values()]
        try:
            energies, vectors = torch.linalg.eigh(sum(products[1:], products[0]))
        except RuntimeError as error:  # which torch's own error for this is
            raise MergeFailed(
                "a shared basis cannot be computed: weights are NaN, infinite or too ill-posed"
            ) from error
        there = energies > SMALLEST_SHARE**2 * energies[..., -1:]
        rank = max(1, int(there.sum(-1).max()))  # of a stack, the largest
        left = (vectors * there[..., None, :])[..., -rank:].flip(-1)
        parts = {index: (left.transpose(-1, -2) @ delta).float() for index, delta in deltas.items()}
        return cls(left.float(), parts, torch.zeros_like(next(iter(parts.values()))))

    def experts(self, count: int) -> list[Tensor]:
        """The parts of all E experts."""
        return [self.parts.get(index, self.zero) for index in range(count)]


@dataclass(frozen=True)
class KnotsState:
    """Models, and for a matrix its shared basis with what the inner method prepared there."""

    inputs: MatrixInputs
    aligned: Aligned | None = None
    inner: Any = None


class _Knots(WholeModelMethod):
    """What both variants share. They differ in the method that merges within the shared basis."""

    @property
    @abstractmethod
    def inner(self) -> WholeModelMethod | MergeMethod:
        """Merges the parts."""

    @property
    @abstractmethod
    def fixed(self) -> dict[str, Value]:
        """Structural values of the inner method."""

    def num_surveys(self, structural: Mapping[str, Value]) -> int:
        """As many as the inner method's."""
        return self.inner.num_surveys(self.fixed) if isinstance(self.inner, WholeModelMethod) else 0

    def survey(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> list[Distribution] | None:
        """Magnitudes of the parts; of matrices only."""
        inputs = MatrixInputs.check(base, experts, context)
        if inputs.shape is None:
            return None
        assert isinstance(self.inner, WholeModelMethod)
        with torch.no_grad(), one_thread():
            aligned = Aligned.of(inputs)
        share: list[Distribution] = self.inner.survey(aligned.zero, aligned.experts(len(experts)), self.fixed, context)
        return share

    def fold(self, total: list[Distribution] | None, share: list[Distribution] | None) -> list[Distribution] | None:
        """Add a matrix's."""
        assert isinstance(self.inner, WholeModelMethod)
        return total if share is None else self.inner.fold(total, share)

    def conclude(self, total: list[Distribution] | None) -> Any:
        """The inner method's statistics, None without a matrix."""
        assert isinstance(self.inner, WholeModelMethod)
        return None if total is None else self.inner.conclude(total)

    def prepare_surveyed(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> KnotsState:
        """Find the shared basis and prepare the merge in it.

        Raises:
            ValueError: no base.
            MergeFailed: weights that are not finite.
        """
        inputs = MatrixInputs.check(base, experts, context)
        if inputs.shape is None:
            return KnotsState(inputs)
        with torch.no_grad(), one_thread():
            aligned = Aligned.of(inputs)
        inner = self.inner.prepare(aligned.zero, aligned.experts(len(experts)), self.fixed, context)
        return KnotsState(inputs, aligned, inner)

    @torch.no_grad()
    def apply(self, state: KnotsState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        models = state.inputs.inputs
        scale, coefficients = read_number(values, "lambda"), read_numbers(values, "coefficient", len(models.experts))
        densities, normalize = read_densities(values, len(coefficients)), read_flag(values, "normalize")
        if state.aligned is None:
            weights = [scale * coefficients[index] / len(coefficients) for index in models.active]
            experts = [models.experts[index] for index in models.active]
            weighted_sum(out, [models.origin, *experts], [1.0 - sum(weights), *weights])
            return
        merged = torch.empty_like(state.aligned.zero)
        inner: dict[str, Value | Sequence[float]] = {
            "coefficient": coefficients,
            "density": densities,
            "merge_func": "mean",
            "normalize": normalize,
            "lambda": 1.0,
        }
        self.inner.apply(state.inner, inner, merged)
        with one_thread():
            delta = state.aligned.left @ merged
        weighted_sum(out, [models.origin, delta.view(-1)], [1.0, scale])

    def is_constant(self, state: KnotsState) -> bool:
        """Whether every expert equals the base."""
        return not state.inputs.inputs.active

    def state_bytes(self, state: KnotsState) -> int:
        """Bytes of the basis, the parts, what the inner method prepared, and copied inputs."""
        own = state.inputs.inputs.copied_bytes
        if state.aligned is None:
            return own
        tensors = (state.aligned.left, state.aligned.zero, *state.aligned.parts.values())
        return own + sum(tensor.nbytes for tensor in tensors) + self.inner.state_bytes(state.inner)


class KnotsTies(_Knots):
    """``θ0 + λ U R``: R the TIES merge of the ``R_i = Uᵀ τ_i``, U the left singular vectors of all τ_i side by side.

    The trim keeps the largest entries of an expert's parts over all matrices of the model. Made for LoRA experts, whose
    changes are matrices; anything else gets λ times the mean of ``c_i τ_i``.
    Reference: Stoica 2024, https://arxiv.org/abs/2410.19735
    """

    @property
    def inner(self) -> Ties:
        """TIES."""
        return Ties()

    @property
    def fixed(self) -> dict[str, Value]:
        """Trimmed over all matrices."""
        return {"trim_scope": "global"}


class KnotsDareTies(_Knots):
    """``knots_ties`` with random masks in the place of the trim: entries kept with probability d, divided by d.

    Reference: Stoica 2024, https://arxiv.org/abs/2410.19735
    """

    @property
    def inner(self) -> DareTies:
        """DARE with TIES."""
        return DareTies()

    @property
    def fixed(self) -> dict[str, Value]:
        """Unbiased masks."""
        return {"rescale": "inv_density"}
