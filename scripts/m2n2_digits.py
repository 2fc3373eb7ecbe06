"""The digits experiment of M2N2 beside the published code's numbers: table, figure and every run's course.

python scripts/m2n2_digits.py OUT [--settings scripts/m2n2_digits.yaml] [--stage pre_trained] [--method m2n2 ...]
                              [--runs 5] [--passes 1000] [--in-flight 1]

Each finished run is a file under OUT/runs, so a command that was stopped goes on where it was. OUT/result.json and
OUT/result.md hold all runs that are there, OUT/<stage>.svg the figures. Run with OMP_NUM_THREADS=1: matrices are small.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from digits_methods import NICHES, Task, trace
from digits_network import Network, load_digits, pre_trained_pair, random_pair
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from evomerge.files import atomic_write_bytes
from evomerge.reports.plain_figure import draw, quiet

SETTINGS = Path(__file__).with_suffix(".yaml")
POINTS = 100  # of a course, beside the steps of the published table
# Authors' code: stage, method, passes -> mean and standard deviation of test accuracy in percent. Pre-trained: their
# own loop, 5 runs; scratch: their functions compiled, 20 runs (scripts/peers/natural_niches.py).
PUBLISHED = {
    ("pre_trained", "m2n2"): {500: (67.56, 1.62), 1000: (68.06, 1.15)},
    ("pre_trained", "no_matchmaker"): {1000: (67.56, 1.47)},
    ("pre_trained", "no_split_point"): {1000: (64.72, 0.18)},
    ("pre_trained", "ga"): {1000: (58.78, 7.99)},
    ("pre_trained", "brute_force"): {10000: (64.72, None)},
    ("scratch", "m2n2"): {500: (30.32, 5.17), 1000: (37.46, 5.55), 2000: (52.18, 7.27), 5000: (73.31, 6.63)},
    ("scratch", "ga"): {500: (36.12, 4.30), 1000: (43.72, 4.45), 2000: (51.08, 4.09), 5000: (59.55, 5.77)},
}
STEPS = (500, 1000, 2000, 5000, 10000, 50000)
NAMES = {
    "m2n2": "M2N2",
    "no_matchmaker": "no matchmaker",
    "no_split_point": "no split point",
    "ga": "genetic algorithm",
    "map_elites": "MAP-Elites",
    "sep_cma": "sep-CMA-ES",
    "brute_force": "brute force",
}
COLORS = {
    "m2n2": "#0b62a4",
    "no_matchmaker": "#3d9a50",
    "no_split_point": "#8a5fbf",
    "ga": "#d9730d",
    "map_elites": "#b0344d",
    "sep_cma": "#6b6b6b",
    "brute_force": "#1b1b1b",
}


def run_one(stage: str, method: str, run: int, passes: int, options: dict[str, Any], in_flight: int, tick: Any) -> dict:
    """One run: steps, train and test accuracy of the best so far at each, CPU and wall milliseconds of a pass."""
    train, test = load_digits()
    seed = options["seed"] + run
    scratch = stage == "scratch"
    seeds = random_pair(seed, options["noise"]) if scratch else pre_trained_pair(train, options["noise"])
    if method == "brute_force":
        passes = options["brute_force"]
    wanted = {step for step in STEPS if step <= passes} | {round(x) for x in np.linspace(1, passes, POINTS)}
    tester = Network(test)
    rows: list[tuple[int, float, float]] = []
    task = Task(train, test, seeds, options["noise"] if scratch else 0.0, passes, seed, options)
    began, cpu = time.perf_counter(), time.process_time()
    for step, (value, parameters) in enumerate(trace(method, task, in_flight), 1):
        if step in wanted:
            rows.append((step, value, tester.accuracy(parameters)))
            tick(step, passes)
    wall, used = time.perf_counter() - began, time.process_time() - cpu
    steps, values, tests = zip(*rows)
    return {
        "stage": stage,
        "method": method,
        "run": run,
        "in_flight": in_flight,
        "passes": passes,
        "steps": steps,
        "train": values,
        "test": tests,
        "cpu_ms": 1000 * used / passes,
        "wall_ms": 1000 * wall / passes,
    }


def at(runs: list[dict], step: int, what: str) -> list[float]:
    """Percent of each run after ``step`` passes."""
    return [100 * run[what][run["steps"].index(step)] for run in runs if step in run["steps"]]


def shown(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def table(results: list[dict]) -> str:
    """Markdown: test and train accuracy beside the authors' code."""
    lines = [
        "| setting | method | passes | runs | test % | authors' code | train % | CPU ms a pass |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (stage, method, in_flight), runs in grouped(results).items():
        published = PUBLISHED.get((stage, method), {})
        last = max(run["passes"] for run in runs)
        for step in sorted({step for step in published if step <= last} | {last}):
            known = published.get(step)
            spread = f" ± {known[1]:.2f}" if known and known[1] is not None else ""
            reference = f"{known[0]:.2f}{spread}" if known else "–"
            label = NAMES[method] + (f", {in_flight} in flight" if in_flight > 1 else "")
            tests = at(runs, step, "test")
            cost = statistics.median(run["cpu_ms"] for run in runs)
            lines.append(
                f"| {stage.replace('_', '-')} | {label} | {step} | {len(tests)} | {shown(tests)} | {reference} "
                f"| {shown(at(runs, step, 'train'))} | {cost:.2f} |"
            )
    return "\n".join(lines) + "\n"


def grouped(results: list[dict]) -> dict[tuple[str, str, int], list[dict]]:
    found: dict[tuple[str, str, int], list[dict]] = {}
    order = ["pre_trained", "scratch"]
    for one in sorted(results, key=lambda r: (order.index(r["stage"]), list(NAMES).index(r["method"]), r["run"])):
        found.setdefault((one["stage"], one["method"], one["in_flight"]), []).append(one)
    return found


def figure(stage: str, results: list[dict]) -> bytes:
    """Test accuracy against passes: mean of the runs, and a band from the worst to the best run."""
    lines = {key: runs for key, runs in grouped(results).items() if key[0] == stage and key[2] == 1}
    most = max(run["passes"] for (_, method, _), runs in lines.items() for run in runs if method != "brute_force")

    def draw_on(canvas: Any) -> None:
        axes = canvas.subplots()
        for (_, method, _), runs in lines.items():
            color, label = COLORS[method], NAMES[method]
            if method == "brute_force":
                axes.axhline(100 * runs[0]["test"][-1], color=color, linestyle="--", linewidth=1.0, label=label)
                continue
            passes = min(run["passes"] for run in runs)
            rows = 100 * np.array([run["test"] for run in runs if run["passes"] == passes])
            steps = next(run["steps"] for run in runs if run["passes"] == passes)
            axes.fill_between(steps, rows.min(axis=0), rows.max(axis=0), color=color, alpha=0.15, linewidth=0)
            axes.plot(steps, rows.mean(axis=0), color=color, label=label)
        axes.set_xlabel("forward passes over the training digits")
        axes.set_ylabel("test accuracy (%)")
        axes.set_xlim(0, most)
        quiet(axes)
        canvas.legend(loc="outside right upper")

    alt = f"Test accuracy of each method against forward passes, {stage.replace('_', '-')}."
    return draw(f"digits_{stage}", draw_on, alt, height=3.2).file("svg")


def collect(out: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]


def report(out: Path) -> str:
    results = collect(out)
    atomic_write_bytes(out / "result.json", (json.dumps(results) + "\n").encode())
    text = table(results)
    atomic_write_bytes(out / "result.md", text.encode())
    for stage in {run["stage"]: None for run in results}:
        atomic_write_bytes(out / f"{stage}.svg", figure(stage, results))
    return text


def jobs(options: dict[str, Any], given: argparse.Namespace) -> list[tuple[str, str, int, int]]:
    found = []
    for stage, plan in options["stages"].items():
        if given.stage and stage not in given.stage:
            continue
        for method, runs in plan["methods"].items():
            if (given.method and method not in given.method) or (given.in_flight > 1 and method not in NICHES):
                continue
            runs = runs if method == "brute_force" else given.runs or runs
            found += [(stage, method, run, given.passes or plan["passes"]) for run in range(runs)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    parser.add_argument("--stage", nargs="*", choices=["pre_trained", "scratch"])
    parser.add_argument("--method", nargs="*", choices=list(NAMES))
    parser.add_argument("--runs", type=int)
    parser.add_argument("--passes", type=int)
    parser.add_argument("--in-flight", type=int, default=1)
    given = parser.parse_args()
    options = yaml.safe_load(given.settings.read_text())
    (given.out / "runs").mkdir(parents=True, exist_ok=True)
    todo = jobs(options, given)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("runs", total=len(todo))
        for stage, method, run, passes in todo:
            path = given.out / "runs" / f"{stage}-{method}-{run}-{passes}-{given.in_flight}.json"
            if not path.exists():
                label = f"{stage} {NAMES[method]} {run}"
                begun = progress.tasks[bar].completed

                def tick(step: int, total: int, label: str = label, begun: float = begun) -> None:
                    progress.update(bar, description=label, completed=begun + step / total)

                done = run_one(stage, method, run, passes, options, given.in_flight, tick)
                atomic_write_bytes(path, json.dumps(done).encode())
                progress.update(bar, completed=begun)
            progress.advance(bar)
    print(report(given.out))


if __name__ == "__main__":
    main()
