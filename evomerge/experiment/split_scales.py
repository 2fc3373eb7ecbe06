"""What scores are divided by on documents that nobody searched: their anchors' scores on the same documents.

A share of an expert's score (retention) compares two scores of the same documents. The optimizer is told shares of the
search documents' scores; on the others the anchors are scored too, and only where one of them could not be is its
search score taken instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.experiment.baselines import baseline_key
from evomerge.experiment.load import Experiment
from evomerge.search.anchors import Anchor
from evomerge.store.events import Ended, Evaluated
from evomerge.terms import SplitName


@dataclass(frozen=True)
class SplitScales:
    """Divisors of raw fitness on one split.

    Attributes:
        values: ``(M,)``.
        splits: M, the documents each was measured on: the split itself, or ``search`` where its anchor has no score,
            or one of zero, there; empty text where nothing is divided.
    """

    values: tuple[float, ...]
    splits: tuple[str, ...]


def anchor_models(loaded: Experiment, anchors: Sequence[Anchor]) -> tuple[str, ...]:
    """Baselines (``base``, ``expert NAME``) that have to be scored for these anchors."""
    experts = [f"expert {name}" for name, _ in loaded.experts]
    needed: dict[str, None] = {}
    for anchor in anchors:
        if anchor.kind != "raw":
            names = ["base"] if anchor.kind == "base" else [str(anchor)] if anchor.expert else experts
            needed |= dict.fromkeys(names)
    return tuple(needed)


def split_scales(
    loaded: Experiment,
    outcomes: Mapping[str, Ended],
    split: SplitName,
    search_scales: Sequence[float],
) -> SplitScales:
    """By what each objective's raw fitness is divided on a split.

    Args:
        loaded: the experiment.
        outcomes: of the run so far, by key.
        split: on which documents.
        search_scales: ``(M,)``, what optimizers are told shares of.
    """
    values, splits = [], []
    for number, (anchor, scale) in enumerate(zip(loaded.rules.normalise, search_scales, strict=True)):
        events = [outcomes.get(baseline_key(name, split)) for name in anchor_models(loaded, [anchor])]
        scores = [event.fitness[number] for event in events if isinstance(event, Evaluated)]
        here = abs(max(scores)) if scores and len(scores) == len(events) else 0.0
        is_own = split != "search" and here > 0
        values.append(here if is_own else scale)
        splits.append("" if anchor.kind == "raw" else split if is_own else "search")
    return SplitScales(tuple(values), tuple(splits))
