"""Optimizers on recorded landscapes, without models: how good the merge is after so many evaluations.

python scripts/bench_search.py [--landscape zoo3 micro9 smm] [--optimizers NAME ...] [--evaluations 160] [--seeds 10]
                               [--objectives 1] [--documents N] [--workers 4] [--failures 0.05] [--jobs 2]
                               [--out FILE.json|FILE.csv] [--figure FILE.png|svg|pdf]

A search sees half of each task's documents, others for each seed (--documents 0 = all of them, as recorded), and begins
where the search space begins. It is judged by all documents: with one objective (the mean of the tasks) the candidate
that looked best so far, with several (--objectives M, the first M tasks) the hypervolume of those that looked
non-dominated. Brackets are 95 % bootstrap intervals of the mean over seeds.

Targets: 95 % of the best known value, and 95 % of the way there from the initial genes, which asks for more where the
start is good already. "to ..." is the expected number of evaluations of a search that starts again with another seed
where one missed the target (all evaluations of all seeds, divided by the seeds that reached it).
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from landscape_search import (
    Band,
    Case,
    Entry,
    band,
    best_value,
    checkpoints,
    compare,
    expected_evaluations,
    first_reach,
    start_value,
    why_not,
)
from landscapes import load_landscape
from rich.console import Console
from rich.table import Table

from evomerge.errors import UserError, did_you_mean
from evomerge.files import atomic_write_bytes, atomic_write_json
from evomerge.search.catalogue import SPECS
from evomerge.terms import Array

SHARE = 0.95
SLOW = ("gp", "tpe")  # seconds to minutes for each search: only where they are named
COLUMNS = (10, 20, 40, 80, 160, 320, 640)
INK = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")


@dataclass(frozen=True)
class Found:
    """Everything one case gave.

    Attributes:
        case: the case.
        best: best known value, as every number here judged by all documents.
        start: of the initial genes; 0 with several objectives.
        curves: optimizer -> ``(S, P)``.
    """

    case: Case
    best: float
    start: float
    curves: Mapping[str, Array]

    @property
    def points(self) -> list[int]:
        """Evaluations after which the curves were judged."""
        return checkpoints(self.case.evaluations, self.case.objectives)

    def targets(self) -> dict[str, float]:
        """Name -> value that a search is timed to."""
        found = {"to 95 % of best": SHARE * self.best}
        if self.case.objectives == 1:
            found["to 95 % of the gain"] = self.start + SHARE * (self.best - self.start)
        return found


def run_case(case: Case, names: Sequence[str], seeds: Sequence[int], jobs: int) -> tuple[Found, dict[str, str]]:
    """Compare optimizers; those that do not fit are left out, with the reason."""
    reasons = {name: why_not(Entry(name), case) for name in names}
    curves = compare([Entry(name) for name in names if reasons[name] is None], case, seeds, jobs)
    best = max([best_value(case.landscape, case.objectives), *(float(rows.max()) for rows in curves.values())])
    start = start_value(case) if case.objectives == 1 else 0.0
    return Found(case, best, start, curves), {name: reason for name, reason in reasons.items() if reason}


def shown(value: Band | None, decimals: int = 3) -> str:
    """``.712 (.690-.731)``; a dash where there is nothing."""
    if value is None:
        return "-"
    low, mid, high = ("inf" if np.isinf(v) else f"{v:.{decimals}f}" for v in (value.low, value.value, value.high))
    return f"{mid} ({low}-{high})"


def table_of(found: Found) -> Table:
    """Value after some of the evaluations, and evaluations to the targets."""
    points = found.points
    columns = [count for count in COLUMNS if points[0] <= count < points[-1]] + [points[-1]]
    at = [int(np.searchsorted(points, count)) for count in columns]
    seen = "all" if found.case.documents is None else str(found.case.documents)
    what = "mean of the tasks" if found.case.objectives == 1 else f"hypervolume of {found.case.objectives} objectives"
    title = (f"{found.case.landscape}: {what}, {seen} documents of each task; best known {found.best:.4f}"
             + (f", start {found.start:.4f}" if found.case.objectives == 1 else ""))  # fmt: skip
    targets = found.targets()
    table = Table("optimizer", *(f"after {points[index]}" for index in at), *targets, "reached", title=title)
    order = sorted(found.curves, key=lambda name: -float(found.curves[name][:, -1].mean()))
    for name in order:
        rows = found.curves[name]
        cells = [shown(band(rows[:, index])) for index in at]
        times, reached = [], []
        for target in targets.values():
            times.append(shown(_in_evaluations(expected_evaluations(rows, target), points), 0))
            reached.append(str(int(first_reach(rows, target)[1].sum())))
        table.add_row(name, *cells, *times, f"{', '.join(reached)} of {len(rows)}")
    return table


def _in_evaluations(value: Band | None, points: Sequence[int]) -> Band | None:
    """Checkpoints into evaluations: they are equally far apart."""
    return value and Band(value.value * points[0], value.low * points[0], value.high * points[0])


def rows_of(found: Found) -> list[dict[str, Any]]:
    """One row for each optimizer and checkpoint."""
    rows = []
    for name, curves in found.curves.items():
        for index, count in enumerate(found.points):
            value = asdict(band(curves[:, index]))
            rows.append({"landscape": found.case.landscape, "objectives": found.case.objectives, "optimizer": name,
                         "evaluations": count, "mean": value["value"], "low": value["low"], "high": value["high"],
                         "seeds": len(curves)})  # fmt: skip
    return rows


def write(path: Path, results: Sequence[Found]) -> None:
    """Everything as JSON (each seed's curve too) or as CSV (means and intervals).

    Raises:
        UserError: another ending.
    """
    if path.suffix == ".csv":
        rows = [row for found in results for row in rows_of(found)]
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write_bytes(path, text.getvalue().encode())
    elif path.suffix == ".json":
        atomic_write_json(path, [
            {"case": asdict(found.case), "best": found.best, "start": found.start, "evaluations": found.points,
             "curves": {name: rows.tolist() for name, rows in found.curves.items()}}
            for found in results
        ])  # fmt: skip
    else:
        raise UserError(f"{path}: expected a name ending in .json or .csv")


def draw(path: Path, results: Sequence[Found]) -> None:
    """One panel for each landscape: means over seeds with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(results), 4.2), layout="constrained")
    names = list(dict.fromkeys(name for found in results for name in found.curves))
    for axes, found in zip(np.atleast_1d(figure.subplots(1, len(results))), results):
        for name, rows in found.curves.items():
            bands = [band(rows[:, index]) for index in range(rows.shape[1])]
            ink, dash = INK[names.index(name) % len(INK)], "-" if names.index(name) < len(INK) else "--"
            axes.plot(found.points, [one.value for one in bands], dash, color=ink, label=name, linewidth=1.4)
            axes.fill_between(
                found.points, [b.low for b in bands], [b.high for b in bands], color=ink, alpha=0.12, lw=0
            )
        axes.axhline(found.best, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=found.case.landscape, xlabel="evaluations", xscale="log")
        axes.set_ylabel("mean of the tasks" if found.case.objectives == 1 else "hypervolume")
        axes.legend(fontsize=7, ncols=2, loc="lower right")
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--landscape", nargs="+", default=["zoo3", "micro9", "smm"])
    parser.add_argument("--optimizers", nargs="+", default=[name for name in SPECS if name not in SLOW])
    parser.add_argument("--evaluations", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--objectives", type=int, default=1)
    parser.add_argument("--documents", type=int, help="of each task that a search sees, 0 = all; half without it")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--failures", type=float, default=0.0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args(arguments)
    try:
        _main(options)
    except UserError as error:
        sys.exit(str(error))


def _main(options: argparse.Namespace) -> None:
    if unknown := [name for name in options.optimizers if name not in SPECS]:
        raise UserError(f"there is no optimizer {unknown[0]!r}. {did_you_mean(unknown[0], SPECS)}")
    if options.out is not None and options.out.suffix not in (".json", ".csv"):
        raise UserError(f"{options.out}: expected a name ending in .json or .csv")
    console = Console(width=200)
    results = []
    for name in options.landscape:
        began = time.perf_counter()
        documents = half(name) if options.documents is None else options.documents or None
        case = Case(name, options.evaluations, options.objectives, documents, options.workers, options.failures)
        found, reasons = run_case(case, options.optimizers, range(options.seeds), options.jobs)
        results.append(found)
        console.print(table_of(found))
        console.print(*(f"left out: {message}" for message in reasons.values()), sep="\n", style="dim")
        console.print(f"{time.perf_counter() - began:.0f} s\n")
        if options.out is not None:
            write(options.out, results)
    if options.figure is not None:
        draw(options.figure, results)


def half(landscape: str) -> int:
    """Half of the documents of the landscape's smallest task."""
    return max(1, min(load_landscape(landscape).num_documents) // 2)


if __name__ == "__main__":
    main()
