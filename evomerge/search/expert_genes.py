"""Which genes are the coefficients of which expert, from the genes' names."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.search.gene_box import is_constant
from evomerge.terms import Gene


def free_genes(genes: Sequence[Gene]) -> list[Gene]:
    """The genes that can change."""
    return [gene for gene in genes if not is_constant(gene)]


def expert_genes(genes: Sequence[Gene]) -> dict[str, tuple[int, ...]]:
    """Expert to the indices of its genes.

    Search spaces name the genes of an expert ``parameter/expert`` or ``parameter/expert/group``; all genes with the
    same second part belong together. Where some name has no such part every gene is an expert of its own.

    Args:
        genes: genes that cannot change belong to nobody.
    """
    free = [index for index, gene in enumerate(genes) if not is_constant(gene)]
    parts = {index: genes[index].name.split("/") for index in free}
    named = all(len(part) > 1 for part in parts.values())
    groups: dict[str, list[int]] = {}
    for index in free:
        groups.setdefault(parts[index][1] if named else genes[index].name, []).append(index)
    return {name: tuple(members) for name, members in groups.items()}
