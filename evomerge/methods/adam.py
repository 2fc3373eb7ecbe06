"""Adam, step for step as torch's, for small problems with a gradient of their own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


def adam(gradient: Callable[[Tensor], Tensor], start: Tensor, steps: int, rate: float | Tensor) -> Tensor:
    """Where Adam is after that many steps.

    Args:
        gradient: at a point; gives a new tensor, which is overwritten.
        start: any shape; is not changed.
        steps: how many.
        rate: the learning rate, a number or a tensor that broadcasts to the point.
    """
    point, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        found = gradient(point)
        first.lerp_(found, 1.0 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(found, found, value=1.0 - _BETAS[1])
        divisor = torch.sqrt(second, out=found).div_(math.sqrt(1.0 - _BETAS[1] ** step)).add_(_EPSILON)
        move = torch.div(first, divisor, out=divisor)
        point.sub_(move.mul_(rate / (1.0 - _BETAS[0] ** step)))
    return point
