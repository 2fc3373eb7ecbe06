"""Optimizers at one budget on the micro zoo: real merges, real scores, the winner judged on held-out documents.

python scripts/bench_real_runs.py OUT [--ways m2n2 sep_cma ...] [--seeds 5] [--evaluations 60] [--jobs 2]

Three experts of a million parameters (`evomerge zoo build micro`), the mean of their three skills and one nobody was
trained for. ``m2n2`` merges the experts themselves (`kind: lineage`), all others search nine coefficients
(`task_arithmetic_three_groups`). Finished runs are kept in OUT. Brackets are 95 % bootstrap intervals of the mean over
seeds; differences from random search are paired by seed.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.progress import track

LINEAGE = {"search_space": {"kind": "lineage"}}
WAYS: dict[str, dict[str, Any]] = {
    "m2n2": {**LINEAGE, "optimizer": {"name": "m2n2", "mode": "steady_state", "population_size": 12}},
    "m2n2, alpha 0, no attraction": {
        **LINEAGE,
        "optimizer": {
            "name": "m2n2",
            "mode": "steady_state",
            "population_size": 12,
            "alpha": 0.0,
            "attraction": False,
        },
    },
    "cma_es": {"optimizer": {"name": "cma_es", "lr_adapt": False}},
    **{
        name: {"optimizer": {"name": name}}
        for name in ("sep_cma", "ga", "pso", "model_swarms", "genome", "evogm", "random")
    },
}
FIXED = {
    "models": {"base": "zoo:micro-base", "experts": {name: f"zoo:micro-{name}" for name in ("add", "let", "rev")}},
    "search_space": "task_arithmetic_three_groups",
    "fitness": ["micro_add", "micro_let", "micro_rev", "micro_copy"],
    "finish": {"baselines": False, "top_k": 3},
    "runtime": {"executor": "inline"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [(way, seed) for seed in range(options.seeds) for way in options.ways]
    with ProcessPoolExecutor(options.jobs) as pool:
        running = [pool.submit(run_one, options.out, *job, options.evaluations) for job in jobs]
        for done in track(as_completed(running), "runs", total=len(running)):
            done.result()
    print("| optimizer | search | held out | over random, paired | s |\n|---|---|---|---|---|")
    found = {way: [summary(options.out, way, seed) for seed in range(options.seeds)] for way in options.ways}
    for way, rows in sorted(found.items(), key=lambda item: -np.mean([row["held_out"] for row in item[1]])):
        chance = found.get("random")
        gained = [row["held_out"] - other["held_out"] for row, other in zip(rows, chance or rows, strict=True)]
        cells = [interval([row[split] for row in rows]) for split in ("search", "held_out")]
        cells += ["" if way == "random" or chance is None else interval(gained)]
        print(f"| {way} | {' | '.join(cells)} | {np.median([row['seconds'] for row in rows]):.0f} |")


def run_one(out: Path, way: str, seed: int, evaluations: int) -> None:
    """One search, unless it is finished."""
    folder = place(out, way, seed)
    if (folder / "summary.json").exists():
        return
    import torch

    import evomerge

    torch.set_num_threads(1)
    experiment = {**FIXED, **WAYS[way], "name": folder.name, "budget": {"evaluations": evaluations}, "seed": seed}
    path = out / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(experiment))
    assert evomerge.run(path, run_dir=folder, overwrite=True).exit_code == 0, folder


def place(out: Path, way: str, seed: int) -> Path:
    return out / f"{way.replace(',', '').replace(' ', '_')}-{seed}"


def summary(out: Path, way: str, seed: int) -> dict[str, float]:
    found = json.loads((place(out, way, seed) / "summary.json").read_text())
    winner = next(row for row in found["rows"] if row["kind"] == "winner")
    values = {split: winner[split]["value"] for split in ("search", "held_out")}
    return {**values, "seconds": found["cost"]["wall_seconds"]}


def interval(values: list[float]) -> str:
    rng = np.random.default_rng(0)
    table = np.array(values)
    means = table[rng.integers(0, len(table), (5000, len(table)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{table.mean():.3f} ({low:.3f}-{high:.3f})"


if __name__ == "__main__":
    main()
