"""What a method drops of one expert's task vector before it joins the merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

ALL, MAGNITUDE, RANDOM, BAND = 0, 1, 2, 3


@dataclass(frozen=True)
class Rule:
    """A trim as plain numbers, for compiled code.

    Attributes:
        kind: ALL keeps everything; MAGNITUDE drops entries below ``limit``, and from flat index ``cut`` on those of
            this very magnitude; RANDOM drops entries whose code is not above ``limit``; BAND drops what MAGNITUDE drops
            and entries above ``upper``, and before flat index ``upper_cut`` those of this very magnitude.
        limit: see ``kind``.
        cut: see ``kind``.
        upper: see ``kind``.
        upper_cut: see ``kind``.
        codes: int16 ``(n,)``, of RANDOM.
    """

    kind: int = ALL
    limit: float = 0.0
    cut: int = 0
    upper: float = 0.0
    upper_cut: int = 0
    codes: Tensor | None = None


class Trim(Protocol):
    """Drops entries of one task vector."""

    def __call__(self, delta: Tensor, start: int, scratch: Tensor) -> None:
        """Zero the dropped entries of ``delta`` in place.

        Args:
            delta: fp32 ``(c,)``, elements ``start`` to ``start + c`` of the flat task vector.
            start: flat index of the first element.
            scratch: fp32 ``(c,)`` to write on.
        """

    @property
    def rule(self) -> Rule | None:
        """The same as numbers, None where compiled code does not know it."""
