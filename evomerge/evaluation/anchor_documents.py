"""Some of a fitness' documents that stand for all of them.

Shapes: D documents, n chosen ones, H features.

Reference: Polo 2024, tinyBenchmarks, https://arxiv.org/abs/2402.14992, section 3.2 (anchor points: cluster the
documents, score the one nearest each centre, weigh it by its cluster).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evomerge.evaluation.irt import ItemModel
from evomerge.terms import Array, derive_seed

Indices = npt.NDArray[np.int64]

NUM_STARTS = 5
MAX_ROUNDS = 50


@dataclass(frozen=True)
class DocumentSubset:
    """Documents that are scored.

    Attributes:
        indices: ``(n,)`` ascending, no two alike.
        weights: ``(n,)`` positive, sum one: the share of all documents that each stands for.
        num_documents: D.
    """

    indices: Indices
    weights: Array
    num_documents: int

    @property
    def others(self) -> Indices:
        """The documents that are not scored, ``(D - n,)``."""
        return np.setdiff1d(np.arange(self.num_documents), self.indices).astype(np.int64)


def random_documents(num_documents: int, count: int, seed: int) -> DocumentSubset:
    """``count`` documents drawn without replacement, of equal weight; smaller subsets are parts of larger ones.

    Raises:
        ValueError: ``count`` is not in 1..D.
    """
    _check_count(num_documents, count)
    order = np.random.default_rng(derive_seed("random documents", seed)).permutation(num_documents)
    return DocumentSubset(np.sort(order[:count]).astype(np.int64), np.full(count, 1.0 / count), num_documents)


def item_features(items: ItemModel) -> Array:
    """Discriminations and difficulties, ``(D, F + 1)``: documents near each other measure the same."""
    return np.column_stack([items.discriminations, items.difficulties])


def score_features(scores: Array) -> Array:
    """Scores that models got on each document, ``(D, C)`` of ``(C, D)``; NaN counts as the document's mean."""
    means = np.nanmean(scores, axis=0)
    found: Array = np.where(np.isfinite(scores), scores, means).T
    return found


def anchor_documents(features: Array, count: int, seed: int = 0) -> DocumentSubset:
    """Documents nearest the centres of k-means clusters, weighted by how many documents are nearest to each.

    A document that is equally near several anchors counts for each in equal parts, so documents with equal features may
    be anchors of one cluster.

    Args:
        features: ``(D, H)`` finite.
        count: n, in 1..D.
        seed: of the starts; equal arguments give equal anchors.

    Raises:
        ValueError: ``count`` is not in 1..D, or a feature is not finite.
    """
    _check_count(len(features), count)
    if not np.all(np.isfinite(features)):
        raise ValueError("features of documents must be finite")
    best: tuple[float, Array] | None = None
    for start in range(NUM_STARTS):
        rng = np.random.default_rng(derive_seed("anchor documents", seed, start))
        centres = _first_centres(features, count, rng)
        spread = np.inf
        for _ in range(MAX_ROUNDS):
            distances = _squared_distances(features, centres)
            nearest = distances.argmin(axis=1)
            before, spread = spread, float(distances.min(axis=1).sum())
            if spread >= before * (1.0 - 1e-12):
                break
            for cluster in np.unique(nearest):
                centres[cluster] = features[nearest == cluster].mean(axis=0)
        if best is None or spread < best[0] * (1.0 - 1e-9):
            best = spread, centres
    assert best is not None
    indices = _nearest_documents(features, best[1])
    return DocumentSubset(indices, _shares(features, indices), len(features))


def _check_count(num_documents: int, count: int) -> None:
    if not 1 <= count <= num_documents:
        raise ValueError(f"the number of documents must be in 1..{num_documents}, got {count}")


def _squared_distances(features: Array, centres: Array) -> Array:
    """``(D, n)``; exact zero between equal rows."""
    found: Array = ((features[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)
    return found


def _first_centres(features: Array, count: int, rng: np.random.Generator) -> Array:
    """k-means++: each further document with probability proportional to its squared distance from those before."""
    chosen = [int(rng.integers(len(features)))]
    distances = _squared_distances(features, features[chosen])[:, 0]
    while len(chosen) < count:
        free = distances.copy()
        free[chosen] = 0.0
        if free.sum() > 0.0:
            chosen.append(int(rng.choice(len(features), p=free / free.sum())))
        else:  # only copies of chosen documents are left
            left = np.setdiff1d(np.arange(len(features)), chosen)
            chosen.append(int(rng.choice(left)))
        distances = np.minimum(distances, _squared_distances(features, features[chosen[-1:]])[:, 0])
    return features[chosen].astype(np.float64)


def _nearest_documents(features: Array, centres: Array) -> Indices:
    """One document for each centre, none twice; the centres with the closest documents choose first."""
    distances = _squared_distances(features, centres)
    chosen: list[int] = []
    for centre in np.argsort(distances.min(axis=0), kind="stable"):
        column = distances[:, centre].copy()
        column[chosen] = np.inf
        chosen.append(int(column.argmin()))
    return np.sort(np.array(chosen, dtype=np.int64))


def _shares(features: Array, indices: Indices) -> Array:
    """Share of all documents that are nearest to each anchor."""
    distances = _squared_distances(features, features[indices])
    is_nearest = distances <= distances.min(axis=1, keepdims=True)
    found: Array = (is_nearest / is_nearest.sum(axis=1, keepdims=True)).sum(axis=0) / len(features)
    return found
