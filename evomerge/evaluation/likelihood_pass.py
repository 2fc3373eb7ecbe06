"""What every way to score log-likelihoods works on and gives.

Shapes: B rows, L tokens, K positions of a pass whose logits are read, T continuation tokens of a pass, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from evomerge.evaluation.shared_prefix import PrefixReader


@dataclass(frozen=True)
class Scored:
    """One request: tokens that go in, and the tokens whose log-probability counts.

    Attributes:
        index: place among the requests.
        inputs: all tokens but the last; the longest ones have lost their beginning, as in lm-eval.
        targets: the continuation; its first token is predicted ``len(targets)`` inputs before the end.
    """

    index: int
    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    is_cut: bool = False

    @property
    def context_length(self) -> int:
        """Inputs up to the one that predicts the first target."""
        return len(self.inputs) - len(self.targets) + 1


Document = tuple[Scored, ...]
Block = tuple[Document, ...]


@dataclass(frozen=True)
class Reading:
    """Where the scored tokens are found in a pass's logits.

    Attributes:
        rows: ``(T,)`` which row of the logits predicts each continuation token.
        targets: ``(T,)`` continuation tokens.
        owners: ``(T,)`` the request each continuation token belongs to.
    """

    rows: torch.Tensor
    targets: torch.Tensor
    owners: tuple[int, ...]

    @classmethod
    def of(cls, entries: Sequence[tuple[Scored, Sequence[int]]], device: torch.device) -> Reading:
        """From each request and the rows of the logits that predict its targets."""
        rows = [row for _, mine in entries for row in mine]
        targets = [token for scored, _ in entries for token in scored.targets]
        owners = tuple(scored.index for scored, _ in entries for _ in scored.targets)
        assert len(rows) == len(targets)
        return cls(
            torch.tensor(rows, dtype=torch.long, device=device),
            torch.tensor(targets, dtype=torch.long, device=device),
            owners,
        )


class LikelihoodPass(Protocol):
    """Some documents that go through the model together."""

    @property
    def reading(self) -> Reading:
        """What is read of the logits."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens the model computes, padding included, shared prefixes not."""
        ...

    def logits(self, model: Any, prefixes: PrefixReader) -> torch.Tensor:
        """Logits ``(K, V)`` at the positions that are read."""
        ...


@dataclass(frozen=True)
class PassSize:
    """How much one forward pass holds: a CPU is fastest at about a thousand tokens, a GPU wants many more.

    Attributes:
        rows: most rows of a padded pass.
        tokens: most tokens of a padded pass.
        packed_tokens: most tokens of a packed pass.
        row_tokens: of one packed row; what its mask costs grows with the square.
    """

    rows: int
    tokens: int
    packed_tokens: int = 1024
    row_tokens: int = 512

    @classmethod
    def of(cls, device: torch.device, batch_size: int | None, pass_tokens: int | None = None) -> PassSize:
        """The size for a device, or what a user asks for.

        Args:
            device: what the passes run on.
            batch_size: exactly so many rows of a padded pass, and no more than as many in a packed one.
            pass_tokens: most tokens of a pass.
        """
        on_cpu = device.type == "cpu"
        packed = pass_tokens or (1024 if on_cpu else 4096)
        row = min(packed, 512)
        if batch_size is not None:
            return cls(batch_size, pass_tokens or 2**40, packed, row)
        return cls(64 if on_cpu else 256, pass_tokens or (1024 if on_cpu else 2**14), packed, row)

    def cut(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        """Bounds of the padded passes over rows of these lengths, longest first."""
        return _cut(lengths, self.rows, self.tokens)

    def cut_packed(self, lengths: Sequence[int], longest: int) -> list[tuple[int, int]]:
        """Bounds of the packed passes over rows of these lengths, longest first."""
        return _cut(lengths, len(lengths) or 1, self.packed_limit(longest))

    def packed_limit(self, longest: int) -> int:
        """Most tokens of a packed pass over sequences of at most this length."""
        return min(self.packed_tokens, self.rows * longest)


def _cut(lengths: Sequence[int], max_rows: int, max_tokens: int) -> list[tuple[int, int]]:
    bounds = []
    start = 0
    while start < len(lengths):
        rows = max(1, min(max_rows, max_tokens // max(1, lengths[start])))
        bounds.append((start, min(start + rows, len(lengths))))
        start += rows
    return bounds
