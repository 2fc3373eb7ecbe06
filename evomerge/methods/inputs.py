"""What a method is given, checked: its tensors and its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evomerge.methods.base import Value

SMALLEST_SUM = 1e-8  # coefficients whose sum is smaller cannot be normalised

Values = Mapping[str, Value | Sequence[float]]


@dataclass(frozen=True)
class Inputs:
    """The tensors of one merge, flat. Contiguous tensors are referenced, others copied.

    Attributes:
        base: ``(n,)``, None without a base.
        experts: E tensors ``(n,)``.
        copied_bytes: memory of the copies.
        active: indices of the experts that differ from the base somewhere; all of them without a base.
    """

    base: Tensor | None
    experts: tuple[Tensor, ...]
    copied_bytes: int = 0
    active: tuple[int, ...] = field(default=())

    @classmethod
    def check(cls, base: Tensor | None, experts: Sequence[Tensor], needs_base: bool = False) -> Inputs:
        """Flatten the tensors and find the experts that matter.

        Raises:
            ValueError: no expert, no base where one is needed, shapes that differ, or tensors of integers.
        """
        if needs_base and base is None:
            raise ValueError("the method merges task vectors and needs a base")
        if not experts:
            raise ValueError("a merge needs at least one expert")
        tensors = [*experts] if base is None else [base, *experts]
        for tensor in tensors:
            if tensor.shape != tensors[0].shape:
                shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
                raise ValueError(f"base and experts must have one shape, got {shapes}")
            if not tensor.is_floating_point():
                raise ValueError(f"base and experts must hold floats, got {tensor.dtype}")
        flat = tuple(tensor.detach().reshape(-1) for tensor in experts)
        origin = None if base is None else base.detach().reshape(-1)
        active = tuple(i for i, expert in enumerate(flat) if origin is None or not is_equal(origin, expert))
        copied = sum(tensor.nbytes for tensor in tensors if not tensor.is_contiguous())
        return cls(origin, flat, copied, active)

    @property
    def origin(self) -> Tensor:
        """The base of a method that needs one."""
        assert self.base is not None
        return self.base


def read_number(values: Values, name: str) -> float:
    """The value of a hyperparameter of the merge.

    Raises:
        ValueError: not a finite number.
    """
    value = values[name]
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def read_flag(values: Values, name: str) -> bool:
    """The value of a boolean hyperparameter of the merge.

    Raises:
        ValueError: neither true nor false.
    """
    value = values[name]
    if value not in (True, False):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return bool(value)


def read_numbers(values: Values, name: str, count: int) -> tuple[float, ...]:
    """The values ``(E,)`` of a hyperparameter of the experts.

    Raises:
        ValueError: not one finite number for each expert.
    """
    given = values[name]
    if isinstance(given, str | int | float) or len(given) != count:
        raise ValueError(f"{name} must hold {count} numbers, one for each expert, got {given!r}")
    numbers = tuple(float(value) for value in given)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must hold finite numbers, got {list(numbers)}")
    return numbers


def read_densities(values: Values, count: int) -> tuple[float, ...]:
    """The fractions ``(E,)`` of the task vectors' entries that are kept.

    Raises:
        ValueError: not one number in (0, 1] for each expert.
    """
    densities = read_numbers(values, "density", count)
    if not all(0.0 < density <= 1.0 for density in densities):
        raise ValueError(f"density must be in (0, 1], got {list(densities)}")
    return densities


def normalizer(coefficients: Sequence[float], normalize: bool) -> float:
    """What a sum of task vectors is divided by: ``Σ c_i`` if asked for and not 0, else 1."""
    total = sum(coefficients) if normalize else 1.0
    return total if abs(total) >= SMALLEST_SUM else 1.0


def as_rows(flat: Tensor, columns: int) -> Tensor:
    """A flat tensor ``(n,)`` as ``(n / columns, columns)``, of its last dimension's length."""
    return flat.view(-1, columns) if columns else flat.view(0, 0)


def is_equal(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers, whatever their dtypes."""
    if left.dtype == right.dtype:
        return torch.equal(left, right)
    return torch.equal(left.float(), right.float())
