"""A driver process that races candidates whose documents are scored by a formula, rung by rung, in a second.

Usage: python toy_racing.py RUN_DIR EVALUATIONS RULE
"""

import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from evomerge.evaluation.documents import DocumentPlan, FitnessPlan, MemberPlan, SplitPlan
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.evaluation.rung_run import run_rungs
from evomerge.evaluation.rungs import RungLayout, RungSettings, lay_rungs
from evomerge.experiment.config import RacingConfig
from evomerge.experiment.racing import RacePlan, RacePlanner
from evomerge.experiment.recorder import RunRecorder
from evomerge.experiment.replay import replay
from evomerge.experiment.search_loop import Limits, SearchLoop
from evomerge.recipes.recipe import Merge
from evomerge.reports.progress import QuietView
from evomerge.runtime.executor import Job, WorkerReport
from evomerge.runtime.inline_executor import InlineExecutor
from evomerge.search.base import Problem
from evomerge.search.catalogue import build_optimizer
from evomerge.store.events import Resumed, RunFinished, RunStarted
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import read_state
from evomerge.terms import DocumentScores, Evaluation, Objective
from tests.integration.toy_search import GENES, SEED, ToySpace

OBJECTIVES = (Objective("toy"),)
IDS = tuple(f"d{index}" for index in range(60))


def toy_layout() -> RungLayout:
    config = FitnessConfig.model_validate({"name": "toy", "task": "toy", "documents": {"search": {"split": "s"}}})
    split = SplitPlan("s", tuple(range(len(IDS))), IDS, IDS)
    plan = DocumentPlan((FitnessPlan("toy", (MemberPlan("toy", {"search": split}),)),))
    return lay_rungs([config], plan, RungSettings(5, 10, "geometric", SEED))


class RacingWorker:
    """A document is right where the candidate is near enough to the optimum for it; every rung takes a moment.

    Args:
        last_rung: rungs after which it is interrupted, None = never.
    """

    def __init__(self, last_rung: int | None = None) -> None:
        self.last_rung = last_rung
        self.rungs = 0
        self.layout = toy_layout()
        self.thresholds = np.random.default_rng(0).uniform(0.0, 1.5, len(IDS))

    def run(self, job: Job) -> Evaluation:
        assert isinstance(job.recipe.model, Merge)
        values = [float(rule.value) for rule in job.recipe.model.rules("coefficient")]
        distance = sum((value - 0.2 * index) ** 2 for index, value in enumerate(values))
        scores = (distance < self.thresholds).astype(np.float64)
        toy = self.layout.objectives[0]
        assert toy is not None

        def score(rung: int) -> list[np.ndarray]:
            time.sleep(0.002)
            self.rungs += 1
            if self.rungs == self.last_rung:
                raise KeyboardInterrupt
            return [scores[toy.rungs[rung]]]

        ran = run_rungs(score, self.layout, OBJECTIVES, job.race)
        kept = np.arange(len(IDS)) if ran.is_complete else np.sort(toy.until(ran.last))
        table = DocumentScores("toy", tuple(IDS[place] for place in kept), scores[kept])
        if ran.stop is not None:
            stop = replace(ran.stop, audit=(float(scores.mean()),)) if ran.is_complete else ran.stop
            return Evaluation((), (table,), rungs=ran.rungs, stop=stop)
        return Evaluation((float(scores.mean()),), (table,), rungs=ran.rungs)

    def report(self) -> WorkerReport:
        return WorkerReport(0, "cpu", "float32", 0, "nothing", 0.0)


def main(path: str, evaluations: int, rule: str, last_rung: int | None = None) -> None:
    with ExitStack() as stack:
        exists = (Path(path) / "events.jsonl").is_file()
        run_dir = RunDir.open(path, exclusive=True) if exists else RunDir.create(path)
        stack.callback(run_dir.close)
        log = run_dir.event_log()
        stack.callback(log.close)
        events = log.read()
        started = RunStarted("toy", "test", "f", time.time(), {"run": SEED}, OBJECTIVES, (0.0,), GENES)
        opening = Resumed(time.time(), "test") if events else started
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
        config = RacingConfig(rule=rule, min_documents=10, audit=0.5, level=0.1)
        plan = RacePlan(config, toy_layout(), OBJECTIVES, (1.0,), False, 1, SEED)
        loop = SearchLoop(
            optimizer, space, InlineExecutor(lambda index: RacingWorker(last_rung)), recorder, progress=progress,
            limits=Limits(evaluations, None), seed=SEED, scalarise=lambda fitness: fitness,
            stop_requested=lambda: False, idle_jobs=iter(()),
            racer=RacePlanner(plan, recorder.scores, recorder.outcomes, lambda fitness: fitness),
        )  # fmt: skip
        log.append(RunFinished(loop.run("generational"), time.time()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
