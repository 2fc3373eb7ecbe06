"""How a genotype becomes a bounded number of study parameters; torch- and optuna-free.

The dashboard sends every parameter of every trial, and its pages slow down with their number, so a long genotype is
shown by the mean, least and largest value of its gene groups, or by their means alone. The whole genotype stays in the
event log.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evomerge.terms import Array, Gene, GeneKind

# With fewer scored candidates nothing is said about which parameters mattered.
MIN_TRIALS = 20

Statistic = Literal["mean", "min", "max"]
STATISTICS: tuple[Statistic, ...] = ("mean", "min", "max")
_ACROSS: dict[Statistic, Callable[..., Any]] = {"mean": np.mean, "min": np.min, "max": np.max}


@dataclass(frozen=True)
class Column:
    """One study parameter.

    Attributes:
        name: shown name, unique in the study.
        kind: real for summaries, else the gene's own.
        low: lower bound.
        high: upper bound.
        choices: of a category.
        genes: indices of the genes it stands for.
        statistic: which of their values it shows.
    """

    name: str
    kind: GeneKind
    low: float
    high: float
    choices: tuple[str, ...]
    genes: tuple[int, ...]
    statistic: Statistic = "mean"

    def value(self, genotype: Array) -> float | int | str:
        """The parameter's value for a genotype ``(G,)``, inside the bounds, to six digits for the eye."""
        if self.kind is GeneKind.CATEGORY:
            return self.choices[min(max(round(float(genotype[self.genes[0]])), 0), len(self.choices) - 1)]
        one = len(self.genes) == 1
        shown = float(genotype[self.genes[0]] if one else _ACROSS[self.statistic](genotype[list(self.genes)]))
        if self.kind is GeneKind.INTEGER:
            return min(max(round(shown), round(self.low)), round(self.high))
        return min(max(float(f"{shown:.6g}"), self.low), self.high)


def plan_columns(genes: Sequence[Gene], gene_groups: Mapping[str, Sequence[int]], cap: int) -> tuple[Column, ...]:
    """The columns of a study, at most ``cap`` of them.

    Genotypes within the cap are shown gene by gene. Longer ones keep their categories (up to half the cap); the other
    genes are summarised per group: mean, least and largest where the cap has room for all three, else the mean alone,
    and neighbouring groups are joined where there are too many.

    Args:
        genes: G genes.
        gene_groups: name -> indices, in display order; genes of no group form the last one.
        cap: most columns, at least 2.
    """
    if len(genes) <= cap:
        return tuple(_single(genes, index) for index in range(len(genes)))
    categories = [index for index, gene in enumerate(genes) if gene.kind is GeneKind.CATEGORY][: cap // 2]
    numeric = {index for index, gene in enumerate(genes) if gene.kind is not GeneKind.CATEGORY}
    groups: list[tuple[str, list[int]]] = []
    seen: set[int] = set()
    for name, indices in gene_groups.items():
        members = [index for index in indices if index in numeric and index not in seen]
        seen.update(members)
        if members:
            groups.append((name, members))
    rest = sorted(numeric - seen)
    if rest:
        # Ungrouped genes are the coarsest when groups exist, else each stands for itself before joining.
        groups += [("other genes", rest)] if groups else [(genes[index].name, [index]) for index in rest]
    joined = _join(groups, cap - len(categories))
    singles = tuple(_single(genes, index) for index in categories)
    num_columns = sum(len(STATISTICS) if len(members) > 1 else 1 for _, members in joined)
    statistics = STATISTICS if len(singles) + num_columns <= cap else STATISTICS[:1]
    return singles + tuple(
        _summary(genes, name, members, statistic)
        for name, members in joined
        for statistic in (statistics if len(members) > 1 else STATISTICS[:1])
    )


def _join(groups: list[tuple[str, list[int]]], cap: int) -> list[tuple[str, list[int]]]:
    """At most ``cap`` runs of neighbouring groups."""
    if len(groups) <= cap:
        return groups
    bounds = [round(step * len(groups) / cap) for step in range(cap + 1)]
    joined = []
    for start, end in itertools.pairwise(bounds):
        run = groups[start:end]
        name = run[0][0] if len(run) == 1 else f"{run[0][0]} … {run[-1][0]}"
        joined.append((name, [index for _, members in run for index in members]))
    return joined


def _single(genes: Sequence[Gene], index: int) -> Column:
    gene = genes[index]
    return Column(gene.name, gene.kind, gene.low, gene.high, gene.choices, (index,))


def _summary(genes: Sequence[Gene], name: str, members: Sequence[int], statistic: Statistic) -> Column:
    if len(members) == 1:
        return _single(genes, members[0])
    across = _ACROSS[statistic]
    low = float(across([genes[index].low for index in members]))
    high = float(across([genes[index].high for index in members]))
    return Column(f"{statistic} of {name}", GeneKind.REAL, low, high, (), tuple(members), statistic)
