"""What a person sees of a run while it is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evomerge.experiment.recorder import SEARCH, RunRecorder
from evomerge.experiment.search_loop import Progress
from evomerge.recipes.recipe import Recipe, Source
from evomerge.reports.progress import QuietView
from evomerge.runtime.executor import Job, Outcome
from evomerge.runtime.inline_executor import InlineExecutor
from evomerge.store.events import RunStarted
from evomerge.store.run_dir import RunDir
from evomerge.terms import Candidate, DocumentScores, Evaluation, Gene, Objective
from tests.integration.toy_search import ToyWorker


def test_a_search_counts_candidates_and_no_baselines(tmp_path: Path) -> None:
    run_dir, recipe = RunDir.create(tmp_path / "run"), Recipe(Source("base"))
    started = RunStarted("toy", "test", "f", 0.0, {"run": 0}, (Objective("toy"),), (-10.0,), (Gene("x"),))
    progress, log = Progress(), run_dir.event_log()
    recorder = RunRecorder(
        run_dir, log, None, progress=progress, decode=lambda genotype: recipe, scalarise=lambda fitness: fitness,
        started=started, view=QuietView(),
    )  # fmt: skip
    recorder.start_phase(SEARCH, 2, InlineExecutor(lambda index: ToyWorker()))
    progress.add(Candidate(0, np.zeros(1), "r", 0))

    def finish(key: str) -> int:
        table = DocumentScores("toy", ("a",), np.array([1.0]))
        evaluation = Evaluation((1.0,), (table,), {})
        recorder.outcome(Outcome(Job(key, recipe), evaluation, 0, 1, 0.0, 1.0))
        return recorder.clock.standing.done

    assert [finish(key) for key in ("baseline:base:search", "c0", "baseline:ties:search")] == [0, 1, 1]
    recorder.start_phase("baselines", 1, InlineExecutor(lambda index: ToyWorker()))
    assert finish("baseline:soup:search") == 1
    log.close()
    run_dir.close()
