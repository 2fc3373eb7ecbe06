import numpy as np
import pytest

from evomerge.store.study_columns import plan_columns
from evomerge.terms import Gene, GeneKind


def block_genes(num_blocks: int) -> tuple[Gene, ...]:
    genes = [Gene(f"b{block}.{part}", low=0.0, high=1.0 + block) for block in range(num_blocks) for part in "xy"]
    return (*genes, Gene("method", GeneKind.CATEGORY, 0, 2, 0, ("linear", "ties", "slerp")))


def test_short_genotypes_are_shown_gene_by_gene():
    genes = (*block_genes(2), Gene("rank", GeneKind.INTEGER, 1, 8, 4))
    columns = plan_columns(genes, {}, 64)
    assert [column.name for column in columns] == [gene.name for gene in genes]
    genotype = np.array([0.5, 0.25, 2.0000001, -1e-12, 1.0, 3.0])
    assert [column.value(genotype) for column in columns] == [0.5, 0.25, 2.0, 0.0, "ties", 3]
    assert type(columns[-1].value(genotype)) is int


@pytest.mark.parametrize("num_blocks", [40, 1000])
def test_long_genotypes_are_means_over_groups_within_the_cap(num_blocks):
    genes = block_genes(num_blocks)
    groups = {f"block {block}": (2 * block, 2 * block + 1) for block in range(num_blocks)}
    columns = plan_columns(genes, groups, 64)
    assert len(columns) <= 64
    assert len({column.name for column in columns}) == len(columns)
    assert columns[0].name == "method"
    covered = [index for column in columns for index in column.genes]
    assert sorted(covered) == list(range(len(genes)))
    genotype = np.array([gene.high for gene in genes])
    for column in columns[1:]:
        assert column.value(genotype) == pytest.approx(column.high)
        assert column.value(genotype) <= column.high
    if num_blocks == 40:
        assert columns[1].name == "mean of block 0"
        assert columns[1].value(np.array([0.5, 1.0] + [0.0] * 79)) == 0.75


def test_ungrouped_genes_are_not_lost():
    genes = block_genes(50)
    some = plan_columns(genes, {"early": tuple(range(10))}, 64)
    assert [column.name for column in some] == [
        "method",
        *(f"{statistic} of {group}" for group in ("early", "other genes") for statistic in ("mean", "min", "max")),
    ]
    genotype = np.linspace(0.0, 1.0, 101)
    assert [column.value(genotype) for column in some[1:4]] == pytest.approx([0.045, 0.0, 0.09])
    assert [(column.low, column.high) for column in some[1:4]] == [(0.0, 3.0), (0.0, 1.0), (0.0, 5.0)]
    tight = plan_columns(genes, {"early": tuple(range(10))}, 6)
    assert [column.name for column in tight] == ["method", "mean of early", "mean of other genes"]
    none = plan_columns(genes, {}, 64)
    assert len(none) == 64
    assert sorted(index for column in none for index in column.genes) == list(range(101))


def test_a_gene_in_two_groups_counts_once():
    columns = plan_columns(block_genes(50), {"a": (0, 1, 2), "b": (2, 3)}, 7)
    assert [column.genes for column in columns[1:3]] == [(0, 1, 2), (3,)]
