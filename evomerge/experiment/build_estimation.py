"""The estimation of a run, from its experiment and its log."""

from __future__ import annotations

from evomerge.evaluation.documents import DocumentPlan
from evomerge.evaluation.estimated_fitness import lay_out
from evomerge.experiment.baselines import baseline_key, experiment_baselines
from evomerge.experiment.estimation import Estimation, EstimationPlan
from evomerge.experiment.estimation_sizes import start_count
from evomerge.experiment.leaders import Ranking
from evomerge.experiment.load import Experiment
from evomerge.experiment.objectives import Judge
from evomerge.experiment.recorder import RunRecorder
from evomerge.store.run_state import RunState
from evomerge.terms import derive_seed


def build_estimation(
    loaded: Experiment, plan: DocumentPlan, recorder: RunRecorder, judge: Judge, state: RunState
) -> Estimation | None:
    """Who estimates in a run; None where nothing is estimated.

    Args:
        loaded: the experiment.
        plan: its documents.
        recorder: of the run.
        judge: compares candidates.
        state: what the log held when this session began.
    """
    config = loaded.config.estimation
    if config is None:
        return None
    layout = lay_out(loaded.fitness, plan, recorder.objectives)
    names = experiment_baselines(loaded) if loaded.config.finish.baselines else {}
    settled = EstimationPlan(
        config, layout, start_count(config, layout), tuple(baseline_key(name, "search") for name in names),
        tuple(baseline_key(f"expert {name}", "search") for name, _ in loaded.experts),
        derive_seed(loaded.config.seed, "estimation"), loaded.where,
    )  # fmt: skip
    ranking = Ranking(lambda fitness: judge.scalarise(fitness)[0], judge.told, recorder.violation, judge.many)
    found = Estimation(
        settled, recorder.scores, recorder.outcomes, ranking=ranking, log=recorder.log.append, note=recorder.view.note
    )
    found.restore(state.fits, state.completions)
    return found
