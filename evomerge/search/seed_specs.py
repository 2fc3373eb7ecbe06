"""Optimizers that merge seed models themselves, and what keeps one from a problem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.search.base import OptimizerSpec, Problem, Setting
from evomerge.terms import GeneKind

DEFAULT_ARCHIVE = 15


def archive_problem(settings: Mapping[str, Any], num_seeds: int) -> str | None:
    """Why an archive cannot hold the seeds it begins with."""
    size = settings.get("population_size", DEFAULT_ARCHIVE)
    if not isinstance(size, int) or size >= num_seeds:
        return None
    return f"an archive of {size} cannot hold the {num_seeds} seeds it begins with; expected {num_seeds} or more"


def _objections(settings: Mapping[str, Any], problem: Problem) -> Iterator[tuple[str, str]]:
    if problem.seeds is None:
        return
    if problem.seeds.num_seeds < 2:
        yield "search_space.seeds", "one seed has nobody to be merged with; name two or more"
    if (message := archive_problem(settings, problem.seeds.num_seeds)) is not None:
        yield "optimizer.population_size", message


SEED_SPECS = (
    OptimizerSpec(
        name="m2n2",
        title="M2N2: merges of merges with drawn split points, competing for documents in an archive",
        target="evomerge.search.m2n2:M2n2",
        settings=(
            Setting("population_size", "int", DEFAULT_ARCHIVE, "models in the archive", low=2, high=10_000),
            Setting(
                "warm_up", "int_or_auto", "auto", "random merges of two seeds before children; auto = fill the archive",
                low=0, high=100_000,
            ),
            Setting("competition", "bool", True, "whether members share the documents' worth; false = a plain GA"),
            Setting("alpha", "float", 1.0, "how much members take from each other; 0 = nothing", low=0, high=10),
            Setting("attraction", "bool", True, "second parent by what it adds to the first; false = by fitness"),
            Setting("split_point", "bool", True, "weights turn around at a drawn parameter; false = one weight"),
            Setting(
                "capacity", "choice", "one", "worth of a document: one, or the best score on it (graded scores)",
                ("one", "best"),
            ),
        ),
        gene_kinds=frozenset(GeneKind),
        multi_objective=True,
        min_genes=0,
        paper="Abrantes et al. 2025, https://arxiv.org/abs/2508.16204",
        objections=_objections,
        handles_constraints=False,
        uses_document_scores=True,
        merges_seeds=True,
    ),
)  # fmt: skip
