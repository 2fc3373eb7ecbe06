"""Merge matrices so that each task vector's inputs see as little as possible of the others (WUDI)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evomerge.methods.base import Value
from evomerge.methods.inputs import read_number, read_numbers
from evomerge.methods.prepared_delta import PreparedDeltaMethod
from evomerge.methods.quadratic import Quadratic
from evomerge.methods.spectral import MatrixInputs

SOLVERS, RESTS = ("adam", "closed_form"), ("base", "mean")
SMALLEST_NORM = 1e-6  # task vectors that are all shorter are averaged: Adam's steps would drown them


@dataclass(frozen=True)
class WudiSettings:
    """The hyperparameters of both methods; the last two belong to one each.

    Attributes:
        coefficients: ``(E,)``.
        solver: one of SOLVERS.
        steps: of Adam.
        rate: Adam's learning rate.
        time: of the closed form.
        share: of the closed form's directions.
        rest: one of RESTS.
        rank_share: directions of a task vector, in units of an equal share of the rank.
    """

    coefficients: tuple[float, ...]
    solver: str
    steps: int
    rate: float
    time: float
    share: float
    rest: str = "mean"
    rank_share: float = 1.0

    @classmethod
    def read(cls, structural: Mapping[str, Value], count: int) -> WudiSettings:
        """Read and check what both methods have.

        Raises:
            ValueError: a value out of its range.
        """
        coefficients = read_numbers(structural, "coefficient", count)
        solver, steps = structural["solver"], read_number(structural, "steps")
        rate, time = read_number(structural, "learning_rate"), read_number(structural, "time")
        share = read_number(structural, "directions_share")
        if solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
        if steps < 0.0 or rate < 0.0 or time < 0.0:
            raise ValueError(f"steps, learning_rate and time must not be negative, got {steps:g}, {rate:g}, {time:g}")
        if not 0.0 < share <= 1.0:
            raise ValueError(f"directions_share must be in (0, 1], got {share:g}")
        return cls(coefficients, str(solver), int(steps), rate, time, share)


class DataFreeDescent(PreparedDeltaMethod):
    """What both methods share: from ``Σ c_i τ_i`` down a quadratic loss. They differ in the loss."""

    def _merge(self, inputs: MatrixInputs, settings: WudiSettings) -> Tensor:
        # The closed form divides by squares of small singular values.
        dtype = torch.float32 if settings.solver == "adam" else torch.float64
        coefficients, norms = settings.coefficients, {}
        total = torch.zeros(inputs.shape or (), dtype=dtype, device=inputs.inputs.origin.device)
        for index in inputs.inputs.active:
            delta = inputs.delta(index).to(dtype)
            norms[index] = torch.linalg.vector_norm(delta, dim=(-2, -1), keepdim=True)
            total += coefficients[index] * delta
        mean = total / len(coefficients)

        def part(index: int, norm: Tensor) -> tuple[Tensor, Tensor]:
            delta = inputs.delta(index).to(dtype)
            return self._part(coefficients[index] * delta, delta / torch.where(norm > 0.0, norm, 1.0), mean, settings)

        problem = Quadratic.collect(total, (part(index, norm) for index, norm in norms.items()))
        if settings.solver == "adam":
            merged = problem.descend(settings.steps, settings.rate)
        else:
            merged = problem.flow(settings.time, settings.share)
        is_tiny = torch.stack([*norms.values()]).amax(0) < SMALLEST_NORM
        return torch.where(is_tiny, mean, merged).float()

    @abstractmethod
    def _part(self, scaled: Tensor, unit: Tensor, mean: Tensor, settings: WudiSettings) -> tuple[Tensor, Tensor]:
        """Target and inputs of one expert, see Quadratic.

        Args:
            scaled: its ``c_i τ_i``, ``(..., m, n)``.
            unit: its ``τ_i / ‖τ_i‖``.
            mean: of ``c_i τ_i`` over all experts.
            settings: the hyperparameters.
        """


class Wudi(DataFreeDescent):
    """``θ0 + λ Δ``, Δ going down ``Σ ‖(Δ - c_i τ_i) τ_iᵀ‖² / ‖τ_i‖²`` from ``Σ c_i τ_i``.

    Rows of ``τ_i`` stand for the inputs on which expert i changed its answers. The solver ``adam``, the published one,
    takes ``steps`` steps of Adam. ``closed_form``, evomerge's variant (much like SWUDI in the code of WUDI v2), follows
    the gradient for a ``time`` exactly: with ``C = Σ τ_iᵀ τ_i / ‖τ_i‖² = V Λ Vᵀ`` and g half the gradient at the start,
    ``Δ = Σ c_i τ_i - g V F Vᵀ``, ``F = (1 - e^(-Λ time)) / Λ``, over the fraction ``directions_share`` of V with the
    largest Λ. Linear maps only, and stacks of them matrix by matrix; ``rest`` leaves other tensors at the base, as
    published, or gives them λ times the mean of ``c_i τ_i``. The coefficients are evomerge's.
    Reference: Cheng 2025, https://arxiv.org/abs/2503.08099
    """

    def _settings(self, structural: Mapping[str, Value], count: int) -> WudiSettings:
        settings, rest = WudiSettings.read(structural, count), structural["rest"]
        if rest not in RESTS:
            raise ValueError(f"rest must be one of {', '.join(RESTS)}, got {rest!r}")
        return replace(settings, rest=str(rest))

    def _shares(self, settings: WudiSettings, count: int) -> tuple[float, ...]:
        factor = 0.0 if settings.rest == "base" else 1.0 / count
        return tuple(factor * coefficient for coefficient in settings.coefficients)

    def _part(self, scaled: Tensor, unit: Tensor, mean: Tensor, settings: WudiSettings) -> tuple[Tensor, Tensor]:
        return scaled, unit
