"""Gradient descent on one tensor, for methods that solve for a merged task vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_DECAYS = (0.9, 0.999)
_EPSILON = 1e-8


def adam(gradient: Callable[[Tensor], Tensor], start: Tensor, steps: int, rate: float) -> Tensor:
    """The point that Adam reaches, with its usual decays 0.9 and 0.999 and without weight decay.

    Args:
        gradient: of the loss, at a point of the shape of ``start``; must not change it.
        start: not changed.
        steps: number of steps.
        rate: step length.

    Reference: Kingma 2014, algorithm 1, https://arxiv.org/abs/1412.6980
    """
    point, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        slope = gradient(point)
        mean.lerp_(slope, 1.0 - _DECAYS[0])
        square.mul_(_DECAYS[1]).addcmul_(slope, slope, value=1.0 - _DECAYS[1])
        scale = (square / (1.0 - _DECAYS[1] ** step)).sqrt_().add_(_EPSILON)
        point.addcdiv_(mean, scale, value=-rate / (1.0 - _DECAYS[0] ** step))
    return point
