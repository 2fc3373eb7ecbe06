"""The same search with evomerge and with mergekit-evolve: seconds per candidate, best fitness over time, peak memory.

python scripts/bench_peers.py OUT --peer-python PATH/TO/bin/python [--evaluations 20] [--documents 40] [--workers 2]
    [--modes in_memory_float32 in_memory on_disk] [--kind generation|choice]

PATH belongs to an environment of its own with mergekit 0.1.5, lm-eval, ray, cma and pandas; what it takes to start
mergekit-evolve there is said in scripts/peers/mergekit_evolve_on_cpu.py. Both tools get the same models, task files,
first N search documents of each task, method (task arithmetic, one coefficient for each expert and third of the depth),
start (1/3), step size (1/6) and population size, and one thread in each of as many workers. Kinds: ``generation``, four
tasks, answers generated without examples; ``choice``, three tasks, four choices, the same five examples before every
question. The tools run one after the other, whole processes. Runs stay in OUT; one that is complete is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from evomerge.engine.sources import resolve_source
from evomerge.recipes.recipe import Source
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import read_state

ROOT = Path(__file__).resolve().parent.parent
BASE = "zoo:smollm2-135m"
EXPERTS = {"math": "zoo:math-en", "spanish": "zoo:spanish", "capitals": "zoo:capitals"}
GENERATION = {
    "zoo_math_en": "exact_match,last_number",
    "zoo_translate_es": "exact_match,strip",
    "zoo_capitals": "exact_match,strip",
    "zoo_math_es_digits": "exact_match,last_number",
}
CHOICE = {"zoo_math_en": "acc,none", "zoo_translate_es": "acc,none", "zoo_capitals": "acc,none"}
NUM_SHOTS = 5
MODES = {
    "in_memory_float32": (["--float32", "--rows", "16"], ["--in-memory"]),
    "in_memory": ([], ["--in-memory"]),
    "on_disk": (["--float32"], ["--batch-size", "16"]),
}
SIGMA = 1 / 6
SAMPLE_SECONDS = 2.0


@dataclass(frozen=True)
class Curve:
    """One search.

    Attributes:
        name: of the tool and how it ran.
        finished: seconds from the start of the command to each score, in the order of arrival.
        scores: mean of the tasks, as the tool reports it.
        busy: seconds per candidate of one worker, once it runs: median over batches.
        peak: largest sum of memory that belongs to the tool's processes alone, bytes.
    """

    name: str
    finished: tuple[float, ...]
    scores: tuple[float, ...]
    busy: float
    peak: int

    @property
    def best(self) -> float:
        """Best score of the search."""
        return max(self.scores)

    def best_at(self, seconds: float) -> float | None:
        """Best score that had arrived by then."""
        arrived = [score for moment, score in zip(self.finished, self.scores) if moment <= seconds]
        return max(arrived, default=None)

    def reaches(self, score: float) -> float | None:
        """When this score was reached, seconds."""
        return next((moment for moment, own in zip(self.finished, self.scores) if own >= score), None)


def write_tasks(folder: Path, documents: int, kind: str) -> dict[str, str]:
    """lm-eval task files over the first documents of each task, for both tools; the metric of each task."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = GENERATION if kind == "generation" else CHOICE
    source = ROOT / "fitness" / "tasks" / "zoo"
    for name in tasks:
        lines = (source / "data" / f"{name}.search.jsonl").read_text().splitlines()[:documents]
        if kind == "choice":
            _write_choice_task(folder, name, lines, source)
            continue
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(lines))
        text = (source / f"{name}.yaml").read_text().replace(f"task: {name}\n", f"task: peer_{name}\n")
        files = f"dataset_kwargs:\n  data_files:\n    search: {data.resolve()}\n"
        (folder / f"peer_{name}.yaml").write_text(re.sub(r"dataset_kwargs:\n  data_files:\n(    .*\n)+", files, text))
    return tasks


def _write_choice_task(folder: Path, name: str, lines: Sequence[str], source: Path) -> None:
    shots = (source / "data" / f"{name}.validation.jsonl").read_text().splitlines()[:NUM_SHOTS]
    answers = sorted({json.loads(line)["answer"] for line in lines})
    files = {}
    for split, some in (("search", lines), ("shots", shots)):
        files[split] = str((folder / f"{name}.{split}.jsonl").resolve())
        with open(files[split], "w") as sink:
            for place, line in enumerate(some):
                document = json.loads(line)
                other = [answer for answer in answers if answer != document["answer"]]
                choices = [other[(7 * place + step) % len(other)] for step in (0, 11, 23)]
                choices.insert(place % 4, document["answer"])
                print(json.dumps({"prompt": document["prompt"], "choices": choices, "label": place % 4}), file=sink)
    task = {
        "task": f"peer_{name}", "dataset_path": "json", "dataset_kwargs": {"data_files": files},
        "test_split": "search", "fewshot_split": "shots", "num_fewshot": NUM_SHOTS,
        "fewshot_config": {"sampler": "first_n"}, "output_type": "multiple_choice", "doc_to_text": "{{prompt}}",
        "doc_to_choice": "choices", "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (folder / f"peer_{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))


def watched(command: Sequence[str], log: Path, environment: dict[str, str]) -> tuple[float, int]:
    """Run a command; when it began (Unix seconds) and its peak memory, all processes below it included."""
    began, peak = time.time(), 0
    print("$", *command, flush=True)
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment, cwd=log.parent)
        while process.poll() is None:
            peak = max(peak, _own_memory(process.pid))
            time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}; see {log}")
    return began, peak


def _own_memory(root: int) -> int:
    """Memory that no other process shares, summed over a process and all below it; mapped model files are shared."""
    total = 0
    try:
        family = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.Error:
        return 0
    for member in family:
        try:
            total += member.memory_full_info().uss
        except psutil.Error:
            continue
    return total


def run_evomerge(out: Path, options: argparse.Namespace) -> Curve:
    """evomerge's search."""
    folder = out / "evomerge"
    experiment = {
        "name": "peers",
        "models": {"base": BASE, "experts": EXPERTS},
        "search_space": {
            "kind": "parameter_space",
            "method": "task_arithmetic",
            "groups": {"blocks": 3},
            "parameters": {"coefficient": {"per": "expert", "low": 0.0, "high": 1.5, "init": "1/n"}},
            "fixed": {"normalize": False, "lambda": 1.0},
        },
        "fitness": [
            {
                "name": name,
                "task": f"peer_{name}",
                "metric": metric,
                "documents": {"search": {"split": "search"}},
                "include_path": [str((out / "tasks").resolve())],
            }
            for name, metric in options.tasks.items()
        ],
        "optimizer": {"name": "cma_es", "sigma": SIGMA / 1.5, "population_size": options.population_size},
        "budget": {"evaluations": options.evaluations},
        "runtime": {"workers": options.workers, "threads": 1},
        "finish": {"baselines": False, "held_out": False, "top_k": 1},
    }
    (out / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    seen = out / "evomerge.json"
    if not seen.exists():
        command = [sys.executable, "-m", "evomerge", "run", str(out / "experiment.yaml"), "--out", str(folder)]
        began, peak = watched([*command, "--quiet"], out / "evomerge.log", _environment())
        seen.write_text(json.dumps({"began": began, "peak": peak}))
    known = json.loads(seen.read_text())
    state = read_state(RunDir.open(folder).event_log().read())
    done = sorted(
        (record.outcome for record in state.candidates if record.fitness is not None),
        key=lambda event: event.finished,
    )
    busy = statistics.median(event.finished - event.started for event in done)
    return Curve(
        "evomerge",
        tuple(event.finished - known["began"] for event in done),
        tuple(statistics.fmean(event.fitness) for event in done),
        busy,
        known["peak"],
    )


def run_peer(mode: str, out: Path, options: argparse.Namespace) -> Curve:
    """mergekit-evolve's search."""
    changes, arguments = MODES[mode]
    log, seen = out / f"{mode}.jsonl", out / f"{mode}.json"
    config = {
        "genome": {
            "models": [str(resolve_source(Source(name))) for name in EXPERTS.values()],
            "base_model": str(resolve_source(Source(BASE))),
            "merge_method": "task_arithmetic",
            "layer_granularity": 10,
            "normalize": False,
        },
        "tasks": [
            {"name": f"peer_{name}", "metric": metric, "weight": 1 / len(options.tasks)}
            for name, metric in options.tasks.items()
        ],
        "apply_chat_template": False,
    }
    (out / "genome.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    if not seen.exists():
        driver = str(ROOT / "scripts" / "peers" / "mergekit_evolve_on_cpu.py")
        command = [
            options.peer_python,
            driver,
            str(log),
            str(options.workers),
            *changes,
            "--",
            str(out / "genome.yaml"),
        ]
        command += ["--max-fevals", str(options.peer_evaluations), "--storage-path", str(out / mode), *arguments]
        command += ["--num-gpus", str(options.workers), "--no-merge-cuda", "--task-search-path", str(out / "tasks")]
        command += ["--no-save-final-model", "--no-reshard", "--sigma0", str(SIGMA)]
        command += ["--force-population-size", str(options.population_size)]
        environment = _environment() | {"HF_DATASETS_CACHE": str(out / "datasets"), "RAY_DEDUP_LOGS": "0"}
        environment.pop("PYTHONPATH", None)
        began, peak = watched(command, out / f"{mode}.log", environment)
        seen.write_text(json.dumps({"began": began, "peak": peak}))
    known = json.loads(seen.read_text())
    batches = [json.loads(line) for line in log.read_text().splitlines()]
    finished, scores = [], []
    for batch in batches:  # the pool reports a batch when all of it is scored
        finished += [batch["finished_at"] - known["began"]] * len(batch["scores"])
        scores += batch["scores"]
    busy = statistics.median(
        (batch["finished"] - batch["started"]) * options.workers / len(batch["scores"]) for batch in batches
    )
    return Curve(f"mergekit-evolve, {mode}", tuple(finished), tuple(scores), busy, known["peak"])


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def show(curves: Sequence[Curve]) -> None:
    """Print the table."""
    ours = curves[0]
    table = Table(title="The same search, side by side")
    for column in ("tool", "candidates", "s per candidate and worker", "x evomerge", "first score, s", "best"):
        table.add_column(column)
    table.add_column("evomerge's best by then")
    table.add_column("evomerge reaches its best after, s")
    table.add_column("peak memory, MB")
    for curve in curves:
        reached = ours.reaches(curve.best)
        by_then = ours.best_at(curve.finished[-1])
        table.add_row(
            curve.name,
            str(len(curve.scores)),
            f"{curve.busy:.1f}",
            f"{curve.busy / ours.busy:.1f}",
            f"{curve.finished[0]:.0f}",
            f"{curve.best:.4f} at {curve.finished[-1]:.0f} s",
            "-" if by_then is None else f"{by_then:.4f}",
            "not reached" if reached is None else f"{reached:.0f}",
            f"{curve.peak / 1e6:,.0f}",
        )
    Console(width=200).print(table)


def main() -> None:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--peer-evaluations", type=int, default=10)
    parser.add_argument("--population-size", type=int, default=10)
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kind", choices=("generation", "choice"), default="generation")
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=list(MODES))
    options: Any = parser.parse_args()
    options.out = options.out.resolve()
    options.tasks = write_tasks(options.out / "tasks", options.documents, options.kind)
    curves = [run_evomerge(options.out, options)]
    for mode in options.modes:
        curves.append(run_peer(mode, options.out, options))
        show(curves)
    if not options.modes:
        show(curves)


if __name__ == "__main__":
    main()
