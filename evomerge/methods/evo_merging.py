"""One LoRA adapter of many: thinned downward factors and weighted sums of both factors (Evo-Merging)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.adapter_method import AdapterMethod, Factors
from evomerge.methods.base import TensorContext, Value
from evomerge.methods.inputs import Values, read_numbers
from evomerge.methods.magnitude_trim import MagnitudeRanking


@dataclass(frozen=True)
class Adapters:
    """The factors of one tensor, ready for any values.

    Attributes:
        factors: one entry for each expert, None where it leaves the tensor alone.
        rankings: of the entries of ``down``, for the same experts.
    """

    factors: tuple[Factors | None, ...]
    rankings: tuple[MagnitudeRanking | None, ...]


class EvoMerging(AdapterMethod):
    """``θ0 + B A`` with ``A = Σ_i scale_i S(A_i, keep_i)`` and ``B = Σ_i scale_i B_i``, all adapters of one rank.

    ``S`` keeps the largest ``keep_i`` of the entries of A_i in magnitude, tensor by tensor, of equal ones those that
    come first; 0 keeps none, 1 all. Above 65536 entries the number kept is rounded down to the next of 65536 levels.
    B_i is never thinned. An expert's own term ``B_i A_i`` is multiplied by ``scale_i²``: a negative scale does not turn
    it round, it acts through the cross terms ``B_i A_j``. This is not ``Σ scale_i B_i A_i``. B_i here includes the
    adapter's own ``lora_alpha / r``. An adapter that leaves a tensor alone counts as zeros in it. Experts must be LoRA
    adapters on the base, without DoRA and ``modules_to_save``; they may also be written as an adapter of the same rank,
    exactly. The search has two stages: ``keep`` at scales of 1/N, then ``scale`` at the values found (see experiments).
    Reference: Evo-Merging 2025, https://arxiv.org/abs/2509.12951
    """

    def prepare_factors(
        self, factors: Sequence[Factors | None], structural: Mapping[str, Value], context: TensorContext
    ) -> tuple[Adapters, int]:
        """Rank the entries of every downward factor."""
        zeros = next(torch.zeros(entry.down.numel(), device=entry.down.device) for entry in factors if entry)
        rankings: list[MagnitudeRanking | None] = []
        num_bytes = zeros.nbytes
        for entry in factors:
            if entry is None:
                rankings.append(None)
                continue
            ranking = MagnitudeRanking(zeros, entry.down.reshape(-1), with_table=context.reused)
            num_bytes += ranking.table_bytes + entry.up.nbytes + entry.down.nbytes
            rankings.append(ranking)
        return Adapters(tuple(factors), tuple(rankings)), num_bytes

    def merged(self, prepared: Adapters, values: Values) -> Factors:
        """The sums of both factors.

        Raises:
            ValueError: a keep outside [0, 1], or values that are not finite.
        """
        keeps, scales = self._values(values, len(prepared.factors))
        first = next(entry for entry in prepared.factors if entry is not None)
        up, down = torch.zeros_like(first.up), torch.zeros_like(first.down)
        for entry, ranking, keep, scale in zip(prepared.factors, prepared.rankings, keeps, scales, strict=True):
            if entry is None or ranking is None or scale == 0.0:
                continue
            up.add_(entry.up, alpha=scale)
            kept = thinned(entry.down, ranking, keep)
            if kept is not None:
                down.add_(kept, alpha=scale)
        return Factors(up, down, first.is_transposed)

    def check_values(self, values: Values, count: int) -> None:
        """Read every value.

        Raises:
            ValueError: a keep outside [0, 1], or values that are not finite.
        """
        self._values(values, count)

    def _values(self, values: Values, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        keeps = read_numbers(values, "keep", count)
        if not all(0.0 <= keep <= 1.0 for keep in keeps):
            raise ValueError(f"keep must be in [0, 1], got {list(keeps)}")
        return keeps, read_numbers(values, "scale", count)


def thinned(down: Tensor, ranking: MagnitudeRanking, keep: float) -> Tensor | None:
    """The factor with all but its largest entries set to 0; None where nothing is kept.

    Args:
        down: ``(r, in)``.
        ranking: of its entries.
        keep: fraction of them, in [0, 1].
    """
    count = int(keep * down.numel())
    if count == 0:
        return None
    trim = ranking.keep_largest(count)
    if trim is None:
        return down
    kept = down.reshape(-1).clone()
    trim(kept, 0, kept)
    return kept.view_as(down)
