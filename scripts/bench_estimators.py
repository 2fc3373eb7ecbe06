"""How well scores of merges are estimated from few documents: estimators of evomerge/evaluation on recorded outcomes.

python scripts/bench_estimators.py [NAME ...] [--repeats 10]

Documents are fitted to the recorded candidates nearest each expert (recordings hold no experts; they stand for them in
mp-IRT) and to k consecutive candidates; 60 others are estimated from n documents of each task and compared with their
scores on all. Everything is averaged over tasks and repeats. ``rmse`` is the root mean square error, ``tau`` Kendall's
rank correlation, ``best`` these two among the best quarter of the 60 (by true score), ``held`` the share within 1.96
standard errors.
Shapes: C candidates, D documents.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
from landscape_recording import Recording, load_recording, recording_path
from landscapes import unit_points
from scipy.stats import kendalltau

from evomerge.errors import UserError
from evomerge.evaluation.anchor_documents import DocumentSubset, anchor_documents, random_documents, score_features
from evomerge.evaluation.irt import ItemModel, fit_items
from evomerge.evaluation.score_estimates import (
    Estimates,
    difference_estimates,
    gp_irt,
    mean_estimates,
    mp_irt,
    p_irt,
)
from evomerge.search.expert_genes import expert_genes
from evomerge.terms import Array, derive_seed

COUNTS = (5, 10, 20, 40)
FITTED = (4, 10, 30)
NUM_HELD_BACK = 60
Key = tuple[int, str, str, int]  # documents, subset, estimator, k
Measures = tuple[float, float, float, float, float]


def expert_rows(recording: Recording) -> list[int]:
    """Recorded candidate nearest each expert alone."""
    points = unit_points(recording)
    width = np.array([gene.width for gene in recording.genes])
    rows = []
    for members in expert_genes(recording.genes).values():
        alone = np.zeros(len(recording.genes))
        alone[list(members)] = 1.0
        rows.append(int(np.linalg.norm(points - alone / width, axis=1).argmin()))
    return rows


def estimates_of(
    items: ItemModel, subset: DocumentSubset, scores: Array, references: Array, num_experts: int
) -> Mapping[str, Estimates]:
    """Every estimator's estimates of candidates ``(C, D)`` that are scored on a subset only."""
    seen = scores[:, subset.indices]
    mean, free = mean_estimates(subset, seen), p_irt(items, subset, seen)
    mixed = mp_irt(items, subset, seen, items.abilities[:num_experts])
    return {
        "mean": mean,
        "difference": difference_estimates(subset, seen, references),
        "p-IRT": free,
        "mp-IRT": mixed,
        "gp-IRT": gp_irt(mean, free),
        "gmp-IRT": gp_irt(mean, mixed),
    }


def measure(estimates: Estimates, full: Array) -> Measures:
    """Squared error, tau, both for the best quarter alone, share within 1.96 standard errors."""
    errors = estimates.values - full
    best = np.argsort(-full, kind="stable")[: len(full) // 4]
    held = np.abs(errors) <= 1.96 * estimates.standard_errors + 1e-12
    return (
        float(np.mean(errors**2)), order(estimates.values, full),
        float(np.mean(errors[best] ** 2)), order(estimates.values[best], full[best]), float(held.mean()),
    )  # fmt: skip


def order(values: Array, full: Array) -> float:
    """Kendall's tau-b; zero where all values are equal, as they say nothing about the order."""
    tau = float(kendalltau(values, full).statistic)
    return 0.0 if np.isnan(tau) else tau


def measurements(recording: Recording, num_repeats: int) -> Iterator[tuple[Key, Measures]]:
    """Of every estimator, number of documents, and k, for each task and repeat."""
    experts = expert_rows(recording)
    others = np.setdiff1d(np.arange(len(recording.genotypes)), experts)
    for repeat in range(num_repeats):
        rng = np.random.default_rng(derive_seed("bench estimators", repeat))
        first = int(rng.integers(len(others) - max(FITTED)))
        held_back = rng.permutation(np.delete(others, np.s_[first : first + max(FITTED)]))[:NUM_HELD_BACK]
        for k in FITTED:
            rows = np.concatenate([experts, others[first : first + k]])
            for table in recording.scores:
                items = fit_items(table[rows])
                for count in (count for count in COUNTS if count < table.shape[1]):
                    subsets = {
                        "random": random_documents(table.shape[1], count, repeat),
                        "anchors": anchor_documents(score_features(table[rows]), count),
                    }
                    for kind, subset in subsets.items():
                        found = estimates_of(items, subset, table[held_back], table[rows], len(experts))
                        for name, estimates in found.items():
                            full = table[held_back].mean(axis=1)
                            yield (count, kind, name, k), measure(estimates, full)


def report(name: str, num_repeats: int) -> None:
    """Print one recording's table as Markdown."""
    recording = load_recording(recording_path(name))
    if others := [task.name for task in recording.tasks if not (task.binary and task.higher_is_better)]:
        raise UserError(f"{name}: this benchmark needs scores of 0 and 1, larger is better: not {', '.join(others)}.")
    began = time.process_time()
    found: dict[Key, list[Measures]] = defaultdict(list)
    for key, values in measurements(recording, num_repeats):
        found[key].append(values)
    means = {key: np.mean(values, axis=0) for key, values in found.items()}
    k_names = [f"k={k}" for k in FITTED]
    header = ["n", "documents", "estimator", *(f"rmse {k}" for k in k_names), *(f"tau {k}" for k in k_names)]
    middle = len(FITTED) // 2
    header += [f"{what} k={FITTED[middle]}" for what in ("best rmse", "best tau", "held")]
    print(f"\n{name}: {len(recording.genotypes)} candidates, {len(recording.tasks)} tasks\n")
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for count, kind, estimator in dict.fromkeys(key[:3] for key in means):
        rows = [means[count, kind, estimator, k] for k in FITTED]
        cells = [f"{np.sqrt(row[0]):.3f}" for row in rows] + [f"{row[1]:.2f}" for row in rows]
        cells += [f"{np.sqrt(rows[middle][2]):.3f}", f"{rows[middle][3]:.2f}", f"{rows[middle][4]:.2f}"]
        print(f"| {count} | {kind} | {estimator} | {' | '.join(cells)} |")
    print(f"\n{time.process_time() - began:.0f} CPU seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["zoo3", "micro9"], metavar="NAME")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    for name in options.names or ["zoo3", "micro9"]:
        try:
            report(name, options.repeats)
        except UserError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
