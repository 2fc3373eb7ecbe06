"""What it costs to get near the best merge: evomerge beside plain CMA-ES, on recorded landscapes, without models.

python scripts/bench_to_target.py [LANDSCAPE...] [--seeds 10] [--share 0.95] [--evaluations 400]

Plain CMA-ES is what most published searches do: it begins at 1/N or .5 everywhere with step size 1/6 and scores every
document of every candidate. The unit of cost is one such full evaluation; a candidate that is scored on fewer documents
costs that share of one. A search has arrived when the true mean (all documents) of the candidate that looked best to it
so far is at the given share of the best known value; the table has the expected cost of arriving, all seeds' cost
divided by the seeds that arrived, with 95 % bootstrap intervals over seeds, and how often a search arrived within its
budget.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from bench_racing import Bench, run_search
from landscapes import best_known, load_landscape

from evomerge.experiment.config import RacingConfig

STEP = 1 / 6
RANGE = 1.5


@dataclass(frozen=True)
class Way:
    """One way to search.

    Attributes:
        optimizer: its name.
        settings: that differ from its defaults.
        documents: of each task, None = all.
        racing: whether candidates are raced.
        start: of every gene, None = the landscape's own (.7).
    """

    optimizer: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    documents: int | None = None
    racing: bool = False
    start: float | None = None


PLAIN = {"lr_adapt": False, "sigma": STEP / RANGE}
WAYS = {
    "plain CMA-ES from 1/N": Way("cma_es", PLAIN, start=1 / 3),
    "plain CMA-ES from .5": Way("cma_es", PLAIN, start=0.5),
    "cma_es, all documents": Way("cma_es"),
    "cma_es, 40": Way("cma_es", documents=40),
    "cma_es, 40, racing": Way("cma_es", documents=40, racing=True),
    "sep_cma, all documents": Way("sep_cma"),
    "sep_cma, 40": Way("sep_cma", documents=40),
    "sep_cma, 40, racing": Way("sep_cma", documents=40, racing=True),
    "sep_cma, 20": Way("sep_cma", documents=20),
    "catcma, 40": Way("catcma", documents=40),
    "catcma, 20": Way("catcma", documents=20),
}


@dataclass(frozen=True)
class Moved:
    """A landscape whose genes begin elsewhere."""

    landscape: Any
    start: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.landscape, name)

    @property
    def genes(self) -> tuple[Any, ...]:
        """Its genes."""
        return tuple(replace(gene, initial=self.start) for gene in self.landscape.genes)


def cost_of_arriving(search: Bench, level: float, full: int) -> tuple[float, bool]:
    """Full evaluations until a search arrived, or all it spent; whether it arrived."""
    for spent, truth in search.curve:
        if truth >= level:
            return spent / full, True
    return search.spent / full, False


def expected(costs: Sequence[tuple[float, bool]]) -> tuple[float, float, float]:
    """Expected cost and its bootstrap interval; infinity where nothing arrived."""
    table = np.array(costs, dtype=np.float64)

    def ratio(rows: Any) -> float:
        arrived = rows[:, 1].sum()
        return float(rows[:, 0].sum() / arrived) if arrived else float("inf")

    rng = np.random.default_rng(0)
    drawn = [ratio(table[rng.integers(0, len(table), len(table))]) for _ in range(2000)]
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    return ratio(table), float(low), float(high)


def main() -> None:
    """Print one table for each landscape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("landscapes", nargs="*", default=["micro9", "zoo3"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.95)
    parser.add_argument("--evaluations", type=int, default=400, help="budget of a search, in its own candidates")
    options = parser.parse_args()
    for name in options.landscapes:
        landscape = load_landscape(name)
        best, _ = best_known(landscape)
        full = sum(landscape.num_documents)
        print(
            f"\n{name}: best known {best:.4f}, to reach {options.share * best:.4f}; {full} documents a full evaluation"
        )
        print("| way | full evaluations to arrive | plain CMA-ES needs | arrived |\n|---|---|---|---|")
        plain = float("nan")
        for label, way in WAYS.items():
            run = argparse.Namespace(
                documents=way.documents or max(landscape.num_documents), evaluations=options.evaluations,
                optimizer=way.optimizer, settings=way.settings, place=None,
            )  # fmt: skip
            moved = landscape if way.start is None else Moved(landscape, way.start)
            racing = RacingConfig() if way.racing else None
            searches = [run_search(moved, seed, run, racing) for seed in range(options.seeds)]
            costs = [cost_of_arriving(search, options.share * best, full) for search in searches]
            middle, low, high = expected(costs)
            plain = np.fmin(plain, middle) if way.settings is PLAIN else plain
            arrived = sum(done for _, done in costs)
            print(
                f"| {label} | {middle:.1f} ({low:.1f}-{high:.1f}) | {plain / middle:.1f}x | {arrived}/{len(costs)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
