"""An archive of models that compete for documents: who is right where few others are gets more, and the worst leaves.

Scores are kept per document. With competition every document is a resource of limited capacity, shared among the
members in proportion to their scores on it, so the archive holds models with different strengths. Parents are drawn by
fitness and by attraction: the second one is good where the first is not.

Without competition (``alpha`` 0) and attraction this is a plain steady-state genetic algorithm.

Reference: Abrantes et al. 2025, Competition and Attraction Improve Model Fusion, https://arxiv.org/abs/2508.16204.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from evomerge.terms import Array

Capacity = Literal["one", "best"]


class NicheArchive:
    """Slots for models, known to the caller by number.

    Args:
        size: P, how many models are kept.
        num_documents: D.
        alpha: how much members take from each other: 0 nothing, 1 a document's capacity is shared out.
        attraction: draw the second parent by what it adds to the first; else by fitness, like the first.
        capacity: of a document: ``one``, or the ``best`` score any member has on it (for graded scores).
    """

    def __init__(
        self,
        size: int,
        num_documents: int,
        *,
        alpha: float = 1.0,
        attraction: bool = True,
        capacity: Capacity = "one",
    ) -> None:
        # One row more than members, for the one that competes with them for a slot. Empty slots are zero.
        self._scores: Array = np.zeros((size + 1, num_documents))
        self._members: list[int | None] = [None] * size
        self._alpha, self._attraction, self._capacity = alpha, attraction, capacity
        self._kept_shares: Array | None = None  # of the members, until they change

    @property
    def members(self) -> list[int | None]:
        """What was added under each slot, None where it is empty."""
        return list(self._members)

    @property
    def num_members(self) -> int:
        """How many slots are taken."""
        return sum(member is not None for member in self._members)

    @property
    def num_documents(self) -> int:
        """How long a row of scores is, D."""
        return int(self._scores.shape[1])

    @property
    def scores(self) -> Array:
        """``(P, D)``, zero in empty slots; a copy."""
        return self._scores[:-1].copy()

    def add(self, member: int, scores: Array) -> int | None:
        """Let a model compete for a slot (algorithm 1, last steps).

        An empty slot is taken first. In a full archive the least fit of the P + 1 leaves, of equals the one in the
        lowest slot, the newcomer last.

        Args:
            member: what the caller knows it by.
            scores: ``(D,)`` finite and not negative.

        Returns:
            Its slot, or None where it is the one that leaves.

        Raises:
            ValueError: ``scores`` are not of that form.
        """
        row = np.asarray(scores, dtype=np.float64)
        if row.shape != self._scores.shape[1:] or not np.all(np.isfinite(row)) or np.any(row < 0):
            raise ValueError(f"expected {self._scores.shape[1]} finite scores of 0 or more, got shape {row.shape}")
        if None in self._members:
            slot = self._members.index(None)
        else:
            self._scores[-1] = row
            slot = int(np.argmin(self._shares(self._scores).sum(axis=1)))
            self._scores[-1] = 0.0
            if slot == len(self._members):
                return None
        self._scores[slot] = row
        self._members[slot] = member
        self._kept_shares = None
        return slot

    def fitness(self) -> Array:
        """``(P,)`` sum over documents of ``capacity * score / z^alpha``, ``z`` the sum of all members' (eq. 2)."""
        found: Array = self._member_shares().sum(axis=1)
        return found

    def attraction_to(self, slot: int) -> Array:
        """``(P,)`` what each member adds where the one in ``slot`` falls short (eq. 3).

        As in the authors' code a document counts ``capacity / z^alpha``; the paper, whose alpha is 1, leaves it out.
        """
        shares = self._member_shares()
        gains = shares - shares[slot]
        found: Array = np.maximum(gains, 0.0, out=gains).sum(axis=1)
        return found

    def parents(self, rng: np.random.Generator) -> tuple[int, int]:
        """Slots of two parents, with replacement. There must be a member.

        Where the chances of all are zero (nobody scored, or nobody adds to the first parent) the second parent is drawn
        by fitness, and where that is zero too, all members are alike.
        """
        fitness = self.fitness()
        first = self._draw(rng, fitness)
        if not self._attraction:
            return first, self._draw(rng, fitness)
        attraction = self.attraction_to(first)
        return first, self._draw(rng, attraction if attraction.any() else fitness)

    def best(self) -> int:
        """Slot of the member with the highest mean score, of equals the lowest."""
        taken = np.array([member is not None for member in self._members])
        return int(np.argmax(np.where(taken, self._scores[:-1].sum(axis=1), -1.0)))

    def mean_score(self, slot: int) -> float:
        """Of the member in a slot, over all documents."""
        return float(self._scores[slot].mean())

    def _member_shares(self) -> Array:
        if self._kept_shares is None:
            self._kept_shares = self._shares(self._scores[:-1])
        return self._kept_shares

    def _shares(self, rows: Array) -> Array:
        """What each row gets of each document, of the shape of ``rows``.

        Fitness is their sum, row by row and not as a matrix product: equal rows must have equal sums, or ties would be
        broken by rounding.
        """
        total = rows.sum(axis=0)
        divisor = np.where(total > 0, total, 1.0)
        divisor = divisor if self._alpha == 1 else divisor**self._alpha
        capacity = 1.0 if self._capacity == "one" else rows.max(axis=0)
        found: Array = rows * (capacity / divisor)
        return found

    def _draw(self, rng: np.random.Generator, chances: Array) -> int:
        """A slot with probability proportional to its chance; one number is drawn."""
        if not chances.any():
            chances = np.array([float(member is not None) for member in self._members])
        sums = np.cumsum(chances)
        found = int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))
        return min(found, int(np.flatnonzero(chances)[-1]))
