"""A driver process that estimates candidates whose documents are scored by a formula, in a second.

Usage: python toy_estimation.py RUN_DIR EVALUATIONS
"""

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.evaluation.documents import DocumentPlan, FitnessPlan, MemberPlan, SplitPlan
from evomerge.evaluation.estimated_fitness import EstimationLayout, lay_out
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.experiment.config import EstimationConfig
from evomerge.experiment.estimation import EstimatingExecutor, Estimation, EstimationPlan
from evomerge.experiment.leaders import Ranking
from evomerge.experiment.recorder import RunRecorder
from evomerge.experiment.replay import replay
from evomerge.experiment.search_loop import Limits, SearchLoop, candidate_id, completed_id
from evomerge.recipes.recipe import Merge
from evomerge.reports.progress import QuietView
from evomerge.runtime.executor import Job, WorkerReport
from evomerge.runtime.inline_executor import InlineExecutor
from evomerge.search.base import Problem
from evomerge.search.catalogue import build_optimizer
from evomerge.store.events import Resumed, RunFinished, RunStarted
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import read_state
from evomerge.terms import DocumentScores, Evaluation, Objective, Part
from tests.integration.toy_search import GENES, SEED, ToySpace

OBJECTIVES = (Objective("toy"),)
IDS = tuple(f"d{index}" for index in range(60))


def toy_layout() -> EstimationLayout:
    config = FitnessConfig.model_validate({"name": "toy", "task": "toy", "documents": {"search": {"split": "s"}}})
    split = SplitPlan("s", tuple(range(len(IDS))), IDS, IDS)
    plan = DocumentPlan((FitnessPlan("toy", (MemberPlan("toy", {"search": split}),), {}, "acc", "none"),))
    return lay_out([config], plan, OBJECTIVES)


class EstimatedWorker:
    """A document is right where the candidate is near enough to the optimum for it; every job takes a moment.

    Documents come in pairs that are equally hard, one in each half of the list.

    Args:
        last_job: jobs after which it is interrupted, None = never.
        misled_from: candidates from this one on have the second half of the documents wrong, though earlier candidates
            scored alike on both halves.
    """

    def __init__(self, last_job: int | None = None, misled_from: int | None = None) -> None:
        self.last_job, self.misled_from = last_job, misled_from
        self.jobs = 0
        self.thresholds = np.tile(np.random.default_rng(0).uniform(0.0, 1.5, len(IDS) // 2), 2)

    def run(self, job: Job) -> Evaluation:
        time.sleep(0.002)
        self.jobs += 1
        if self.jobs == self.last_job:
            raise KeyboardInterrupt
        assert isinstance(job.recipe.model, Merge)
        values = [float(rule.value) for rule in job.recipe.model.rules("coefficient")]
        distance = sum((value - 0.2 * index) ** 2 for index, value in enumerate(values))
        scores = (distance < self.thresholds).astype(np.float64)
        number = completed_id(job.key) if candidate_id(job.key) is None else candidate_id(job.key)
        if self.misled_from is not None and number is not None and number >= self.misled_from:
            scores[len(IDS) // 2 :] = 0.0
        if job.documents is None:
            return Evaluation((float(scores.mean()),), (DocumentScores("toy", IDS, scores),))
        places = list(job.documents[0] or ())
        table = DocumentScores("toy", tuple(IDS[place] for place in places), scores[places])
        return Evaluation((), (table,), part=Part(job.documents, (None,)))

    def report(self) -> WorkerReport:
        return WorkerReport(0, "cpu", "float32", 0, "nothing", 0.0)


def main(path: str, evaluations: int, worker: EstimatedWorker | None = None, **settings: Any) -> None:
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
        config = EstimationConfig.model_validate({"full_every": 2, "leaders": 2, "sampled": 3, **settings})
        plan = EstimationPlan(config, toy_layout(), 15, (), (), SEED, "toy")
        ranking = Ranking(lambda fitness: fitness[0], lambda fitness: fitness, lambda fitness: 0.0, many=False)
        estimation = Estimation(plan, recorder.scores, recorder.outcomes, ranking=ranking, log=log.append)
        estimation.restore(state.fits, state.completions)
        inline = InlineExecutor(lambda index: worker or EstimatedWorker())
        loop = SearchLoop(
            optimizer, space, EstimatingExecutor(inline, estimation.settle), recorder, progress=progress,
            limits=Limits(evaluations, None), seed=SEED, scalarise=lambda fitness: fitness,
            stop_requested=lambda: False, idle_jobs=iter(()), estimator=estimation,
        )  # fmt: skip
        log.append(RunFinished(loop.run("generational"), time.time()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
