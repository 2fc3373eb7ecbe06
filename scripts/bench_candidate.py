"""What one candidate costs beside its forward passes, and how long a run takes to its first result.

python scripts/bench_candidate.py [--zoo smollm2|micro] [--candidates 6] [--threads 2] [--skip-starts]

Prints Markdown rows for docs/benchmarks.md. Ratios compare numbers of this one process.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from evomerge.evaluation.documents import plan_documents
from evomerge.evaluation.fitness_yaml import load_fitness
from evomerge.experiment.recorder import RunRecorder
from evomerge.experiment.search_loop import Limits, Progress, SearchLoop
from evomerge.methods import elementwise
from evomerge.recipes.recipe import Merge, Recipe, Rule, Source
from evomerge.reports.progress import QuietView
from evomerge.runtime.executor import Job, WorkerPlan, WorkerReport
from evomerge.runtime.inline_executor import InlineExecutor
from evomerge.runtime.worker import Worker
from evomerge.search.base import Problem
from evomerge.search.catalogue import build_optimizer
from evomerge.spaces.space_yaml import SpaceModels, build_space, load_space
from evomerge.store.events import RunStarted
from evomerge.store.run_dir import RunDir
from evomerge.terms import DocumentScores, Evaluation, Objective

ZOOS: dict[str, dict[str, Any]] = {
    "smollm2": {
        "base": "zoo:smollm2-135m",
        "experts": {"math": "zoo:math-en", "spanish": "zoo:spanish", "capitals": "zoo:capitals"},
        "fitness": ["zoo_math_en", "zoo_translate_es", "zoo_capitals"],
        "limits": (34, 33, 33),
    },
    "micro": {
        "base": "zoo:micro-base",
        "experts": {"add": "zoo:micro-add", "let": "zoo:micro-let"},
        "fitness": ["micro_add", "micro_let"],
        "limits": (50, 50),
    },
}


def anonymous_bytes() -> int:
    """Anonymous memory of this process; mapped files, which are page cache, do not count."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"Anonymous:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]


def recipes(zoo: dict[str, Any], method: str, count: int) -> list[Recipe]:
    """Merges of all experts with drawn coefficients and densities."""
    rng = np.random.default_rng(0)
    experts = tuple((name, Source(model)) for name, model in zoo["experts"].items())
    base = None if method == "linear" else Source(zoo["base"])
    made = []
    for _ in range(count):
        rules = tuple(Rule(float(rng.uniform(0.2, 0.9)), expert=name) for name, _ in experts)
        parameters = [("coefficient", rules)]
        if method in ("ties", "dare_ties"):
            parameters.append(
                ("density", tuple(Rule(float(rng.uniform(0.2, 0.8)), expert=name) for name, _ in experts))
            )
        made.append(Recipe(Merge(method, experts, base, tuple(parameters)), tokenizer=Source(zoo["base"])))
    return made


def bench_worker(zoo: dict[str, Any], candidates: int, threads: int) -> None:
    """Candidate against pure forward time, merges in place, memory."""
    specs = [
        {"preset": name, "documents": {"search": {"limit": limit}}}
        for name, limit in zip(zoo["fitness"], zoo["limits"])
    ]
    configs = load_fitness(specs)
    plan = plan_documents(configs)
    import lm_eval.models.huggingface  # noqa: F401  libraries are not the worker's memory
    import torch
    import transformers  # noqa: F401

    before = anonymous_bytes()
    began = time.perf_counter()
    worker = Worker(
        WorkerPlan(
            base=Source(zoo["base"]),
            experts=tuple((name, Source(model)) for name, model in zoo["experts"].items()),
            fitness=tuple(config.model_dump(mode="json") for config in configs),
            documents=plan.to_json(),
            threads=threads,
        )
    )
    print(f"worker built in {time.perf_counter() - began:.1f} s; {worker.report().memory_plan}")
    worker.run(Job("warm", recipes(zoo, "ties", 1)[0]))
    rows = []
    for index, recipe in enumerate(recipes(zoo, "ties", candidates + 1)[1:]):
        began = time.perf_counter()
        evaluation = worker.run(Job(f"c{index}", recipe))
        rows.append((time.perf_counter() - began, evaluation.seconds))
    walls = [wall for wall, _ in rows]
    forwards = [seconds.forward for _, seconds in rows]
    ratios = [wall / seconds.forward for wall, seconds in rows]
    report = worker.report()
    print(f"| {plan.num_documents('search')} documents, TIES of {len(zoo['experts'])} | {report.dtype} | "
          f"{statistics.median(walls):.2f} | {statistics.median(forwards):.2f} | "
          f"{statistics.median(s.merge for _, s in rows):.3f} | {statistics.median(s.metric for _, s in rows):.3f} | "
          f"{statistics.median(ratios):.3f} |")  # fmt: skip
    grown = anonymous_bytes() - before
    state = int(re.search(r"prepared merge state ([\d,]+) MB", report.memory_plan)[1].replace(",", ""))  # type: ignore[index]
    over = grown / 1e6 - report.model_bytes / 1e6 - state
    known = f"live model {report.model_bytes / 1e6:.0f} MB + state {state} MB"
    print(f"| anonymous memory | {grown / 1e6:.0f} MB | {known} "
          f"| over by {over:.0f} MB |")  # fmt: skip
    live = worker._live
    weights = torch.cat([parameter.detach().flatten()[:20_000_000] for parameter in list(live.model.parameters())[:1]])
    target = torch.empty_like(weights)
    copies = [timed(lambda: target.copy_(weights)) for _ in range(5)]
    rate = 2 * weights.numel() * weights.element_size() / min(copies) / 1e9
    print(f"| copy bandwidth | {rate:.1f} GB/s |")
    for method in ("linear", "task_arithmetic", "ties", "dare_ties"):
        made = recipes(zoo, method, 6)
        live.apply(made[0])
        seconds: dict[str, list[float]] = {"compiled": [], "torch": []}
        for recipe in made[1:]:
            seconds["compiled"].append(live.apply(recipe))
            with patch.object(elementwise, "_compiled", lambda *_: None):
                seconds["torch"].append(live.apply(recipe))
        cells = (f"{way} {min(s):.3f} s, median {statistics.median(s):.3f} s" for way, s in seconds.items())
        print(f"| {method} in place | {' | '.join(cells)} |")


def timed(call: Any) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class InstantWorker:
    """Returns made-up scores of 400 documents at once, so that only the driver's work is left."""

    def __init__(self) -> None:
        ids = tuple(str(index) for index in range(100))
        rng = np.random.default_rng(1)
        self._tables = tuple(DocumentScores(f"o{index}", ids, rng.uniform(size=100)) for index in range(4))

    def run(self, job: Job) -> Evaluation:
        fitness = tuple(float(table.values.mean()) + job.seed % 97 / 1e4 for table in self._tables)
        return Evaluation(fitness, self._tables, {f"task{index}/acc": 0.5 for index in range(8)})

    def report(self) -> WorkerReport:
        return WorkerReport(0, "cpu", "float32", 0, "", 0.0)


def bench_driver(candidates: int = 300) -> None:
    """Milliseconds the driver spends on a candidate: ask, decode, record, tell, checkpoint."""
    for name in ("task_arithmetic_three_groups", "ties_by_block_group", "task_arithmetic_by_layer"):
        experts = tuple((f"e{index}", Source(f"m{index}")) for index in range(3))
        space = build_space(load_space(name), SpaceModels(Source("base"), experts, 30))
        assert space is not None
        objectives = tuple(Objective(f"o{index}") for index in range(4))
        optimizer = build_optimizer("cma_es", Problem(space.genes, 1, 0, candidates))
        with tempfile.TemporaryDirectory() as folder:
            run_dir = RunDir.create(Path(folder) / "run")
            started = RunStarted("bench", "", "", time.time(), {"run": 0}, objectives, (0.0,) * 4, space.genes)
            log = run_dir.event_log()
            log.append(started)
            progress = Progress()

            def mean(fitness: tuple[float, ...]) -> tuple[float, ...]:
                return (sum(fitness) / len(fitness),)

            recorder = RunRecorder(
                run_dir, log, None, progress=progress, decode=space.decode, scalarise=mean, started=started,
                view=QuietView(),
            )  # fmt: skip
            loop = SearchLoop(
                optimizer, space, InlineExecutor(lambda index: InstantWorker()), recorder, progress=progress,
                limits=Limits(candidates, None), seed=0, scalarise=mean, stop_requested=lambda: False,
                idle_jobs=iter(()),
            )  # fmt: skip
            began, cpu = time.perf_counter(), time.process_time()
            loop.run("generational")
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu
            print(f"| driver, {name}, {len(space.genes)} genes | {1000 * wall / candidates:.1f} ms wall "
                  f"| {1000 * cpu / candidates:.1f} ms CPU |")  # fmt: skip
            run_dir.close()


def bench_starts() -> None:
    """Seconds from the command to the first evaluated candidate, micro zoo."""
    for executor in ("inline", "ray"):
        with tempfile.TemporaryDirectory() as folder:
            run_dir = Path(folder) / "run"
            command = [sys.executable, "-m", "evomerge", "run", "quickstart", "--out", str(run_dir), "--quiet"]
            command += ["--set", f"runtime.executor={executor}", "--set", "budget.evaluations=40"]
            began = time.time()
            process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            log = run_dir / "events.jsonl"
            first = None
            while first is None and process.poll() is None:
                time.sleep(0.05)
                lines = log.read_bytes().splitlines() if log.exists() else []
                first = next((json.loads(line) for line in lines if b'"event":"evaluated"' in line), None)
            process.terminate()
            process.wait()
            print(
                f"| first evaluated candidate, {executor} | {first['finished'] - began:.1f} s |" if first else "failed"
            )


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", choices=sorted(ZOOS), default="smollm2")
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-starts", action="store_true")
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}")
    bench_worker(ZOOS[options.zoo], options.candidates, options.threads)
    bench_driver()
    if not options.skip_starts:
        bench_starts()


if __name__ == "__main__":
    main()
