"""Run experiments on several search seeds and print one table: every winner and every baseline on held-out documents.

python scripts/bench_cross_lingual.py OUT [--experiments NAME ...] [--seeds 0 1 2] [--search-documents N]
                                      [--set key=value ...]

Runs live in OUT/<experiment>-<seed>; one that is there is resumed, a finished one is read. The baselines do not depend
on the seed and are scored once, by the first run, which every other must therefore share models and fitness with.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from evomerge.evaluation.statistics import Interval, paired_difference, score_interval
from evomerge.store.events import Evaluated
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import read_state
from evomerge.terms import DocumentScores

ROOT = Path(__file__).resolve().parent.parent


def run(name: str, seed: int, folder: Path, options: argparse.Namespace, baselines: bool) -> None:
    """Start or resume one run."""
    if (folder / "summary.json").exists():
        return
    command = [sys.executable, "-m", "evomerge", "run", name, "--out", str(folder), "--resume", "--quiet"]
    command += ["--set", f"seed={seed}", "--set", f"finish.baselines={str(baselines).lower()}"]
    if options.search_documents:
        config = yaml.safe_load((ROOT / "experiments" / f"{name}.yaml").read_text())
        limited = {"documents": {"search": {"limit": options.search_documents}}}
        presets = [item if isinstance(item, str) else item["preset"] for item in config["fitness"]]
        fitness = [{"preset": preset, **limited} for preset in presets]
        command += ["--set", f"fitness={json.dumps(fitness)}"]
    for setting in options.set:
        command += ["--set", setting]
    print("$", *command[1:], flush=True)
    subprocess.run(command, check=True, env=os.environ)


def held_out(folder: Path) -> dict[str, tuple[DocumentScores, ...]]:
    """Per-document scores of everything scored on held-out documents, the winner as ``winner``."""
    summary = json.loads((folder / "summary.json").read_text())
    winner = f"held_out:c{summary['winner']['candidate']}"
    run_dir = RunDir.open(folder)
    found = {}
    for key, event in read_state(run_dir.event_log().read()).outcomes.items():
        if isinstance(event, Evaluated) and event.split == "held_out":
            name = "winner" if key == winner else key.removeprefix("baseline:").removesuffix(":held_out")
            found[name] = run_dir.score_store().load(event.scores_ref or "")
    return found


def show(difference: Interval) -> str:
    return f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--experiments", nargs="+", default=["cross_lingual_math", "cross_lingual_math_scalars"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--search-documents", type=int)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    plan = [(name, seed) for seed in options.seeds for name in options.experiments]
    folders = {entry: options.out / f"{entry[0]}-{entry[1]}" for entry in plan}
    for index, (entry, folder) in enumerate(folders.items()):
        run(*entry, folder, options, baselines=index == 0)

    first = next(iter(folders.values()))
    objectives: list[str] = json.loads((first / "summary.json").read_text())["objectives"]
    reference = held_out(first)
    baselines = {name: scores for name, scores in reference.items() if name != "winner"}
    searched: dict[str, tuple[DocumentScores, ...]] = {}
    for (name, seed), folder in folders.items():
        searched[f"{name} {seed}"] = held_out(folder)["winner"]

    def part(tables: tuple[DocumentScores, ...]) -> list[DocumentScores]:
        return [table for table in tables if table.objective in objectives]

    def mean(tables: tuple[DocumentScores, ...]) -> float:
        return statistics.fmean(float(table.values.mean()) for table in part(tables))

    best = max(baselines, key=lambda name: mean(baselines[name]))
    columns = [table.objective for table in baselines[best]]
    print(f"\n| | {' | '.join(columns)} | mean of {len(objectives)} | minus {best} |")
    print("|---" * (len(columns) + 3) + "|")
    for name, tables in {**baselines, **searched}.items():
        scores = " | ".join(f"{table.values.mean():.3f}" for table in tables)
        interval = score_interval(part(tables))
        difference = "" if name == best else show(_paired(part(tables), part(baselines[best])))
        print(f"| {name} | {scores} | {mean(tables):.3f} ({interval.low:.3f} to {interval.high:.3f}) | {difference} |")  # type: ignore[union-attr]
    for name in options.experiments:
        means = [mean(tables) for key, tables in searched.items() if key.rsplit(" ", 1)[0] == name]
        spread = f", standard deviation {statistics.stdev(means):.3f}" if len(means) > 1 else ""
        print(f"\n{name}: mean of {len(means)} winners {statistics.fmean(means):.3f}{spread}")
    _costs(folders)


def _paired(mine: list[DocumentScores], theirs: list[DocumentScores]) -> Interval:
    found = paired_difference(mine, theirs)
    assert found is not None
    return found


def _costs(folders: dict[tuple[str, int], Path]) -> None:
    for (name, seed), folder in folders.items():
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        cost = {key: round(value, 2) for key, value in summary["cost"].items()}
        print(f"{name} {seed}: {summary['evaluations']} evaluations, winner c{summary['winner']['candidate']} of "
              f"generation {summary['winner']['generation']}, seconds {cost}")  # fmt: skip


if __name__ == "__main__":
    main()
