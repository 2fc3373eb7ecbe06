"""A driver process whose worker only computes a formula: real log, optimizer, loop and recorder, in a second.

Usage: python toy_search.py RUN_DIR EVALUATIONS MODE
"""

import sys
import time
from contextlib import ExitStack

from evomerge.experiment.recorder import RunRecorder
from evomerge.experiment.replay import replay
from evomerge.experiment.search_loop import Limits, SearchLoop
from evomerge.recipes.recipe import Merge, Recipe, Rule, Source
from evomerge.reports.progress import QuietView
from evomerge.runtime.executor import Job, WorkerReport
from evomerge.runtime.inline_executor import InlineExecutor
from evomerge.search.base import Problem
from evomerge.search.catalogue import build_optimizer
from evomerge.store.events import Resumed, RunFinished, RunStarted
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import read_state
from evomerge.terms import Array, DocumentScores, Evaluation, Failure, FailureKind, Gene, Objective

GENES = tuple(Gene(f"coefficient/e{index}") for index in range(5))
SEED = 3


class ToySpace:
    """Five coefficients of one merge."""

    def decode(self, genotype: Array) -> Recipe:
        rules = tuple(Rule(float(value), expert=f"e{index}") for index, value in enumerate(genotype))
        experts = tuple((f"e{index}", Source(f"m{index}")) for index in range(len(GENES)))
        return Recipe(Merge("task_arithmetic", experts, Source("base"), (("coefficient", rules),)))


class ToyWorker:
    """Scores a recipe by a formula of its coefficients; every thirteenth seed fails."""

    def run(self, job: Job) -> Evaluation:
        time.sleep(0.004)
        if job.seed % 13 == 0:
            return Evaluation(failure=Failure(FailureKind.EXCEPTION, "thirteen"))
        assert isinstance(job.recipe.model, Merge)
        values = [float(rule.value) for rule in job.recipe.model.rules("coefficient")]
        score = -sum((value - 0.3 * index) ** 2 for index, value in enumerate(values))
        import numpy as np

        table = DocumentScores("toy", ("a", "b"), np.array([score, score]))
        return Evaluation((score,), (table,), {"toy/formula": score})

    def report(self) -> WorkerReport:
        return WorkerReport(0, "cpu", "float32", 0, "nothing", 0.0)


def main(path: str, evaluations: int, mode: str) -> None:
    with ExitStack() as stack:
        exists = (RunDir.open(path) if _has_log(path) else None) is not None
        run_dir = RunDir.open(path, exclusive=True) if exists else RunDir.create(path)
        stack.callback(run_dir.close)
        log = run_dir.event_log()
        stack.callback(log.close)
        events = log.read()
        objectives = (Objective("toy"),)
        opening = (
            Resumed(time.time(), "test")
            if events
            else RunStarted("toy", "test", "f", time.time(), {"run": SEED}, objectives, (-10.0,), GENES)
        )
        state = read_state([*events, opening])
        assert state.started is not None
        optimizer = build_optimizer("cma_es", Problem(GENES, 1, SEED, evaluations))
        space = ToySpace()
        progress, exact = replay(events, optimizer, space.decode, lambda fitness: fitness)
        assert exact
        log.append(opening)
        recorder = RunRecorder(
            run_dir, log, None, progress=progress, decode=space.decode, scalarise=lambda fitness: fitness,
            started=state.started, view=QuietView(),
        )  # fmt: skip
        recorder.replayed(state.outcomes)
        loop = SearchLoop(
            optimizer, space, InlineExecutor(lambda index: ToyWorker()), recorder, progress=progress,
            limits=Limits(evaluations, None), seed=SEED, scalarise=lambda fitness: fitness,
            stop_requested=lambda: False, idle_jobs=iter(()),
        )  # fmt: skip
        log.append(RunFinished(loop.run(mode), time.time()))


def _has_log(path: str) -> bool:
    from pathlib import Path

    return (Path(path) / "events.jsonl").is_file()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
