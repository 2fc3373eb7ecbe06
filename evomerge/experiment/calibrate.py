"""Scoring base and experts before the search, where something is measured against them.

Baselines are idle work otherwise. But a candidate cannot be told before its scores can be divided by an expert's, and
archives of elites lay their grid over the experts' scores, so these few evaluations come first. Their outcomes and the
numbers that follow are in the log before the first candidate is, so a resumed run takes them from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from evomerge.errors import InvalidInput, UserError
from evomerge.errors import Problem as InputProblem
from evomerge.experiment.baselines import baseline_key
from evomerge.experiment.finish import baseline_job, score_jobs
from evomerge.experiment.load import Experiment
from evomerge.experiment.recorder import RunRecorder
from evomerge.experiment.split_scales import anchor_models
from evomerge.runtime.executor import Executor
from evomerge.search.anchors import AnchorScores
from evomerge.search.base import Problem
from evomerge.search.calibration import Calibration, calibrate
from evomerge.search.catalogue import get_spec
from evomerge.store.events import Calibrated, Evaluated, Failed
from evomerge.store.run_state import RunState

PHASE = "base and experts"


def needed_models(loaded: Experiment) -> tuple[str, ...]:
    """Baselines (``base``, ``expert NAME``) that have to be scored before the search."""
    needed = dict.fromkeys(anchor_models(loaded, loaded.rules.anchors))
    if _lays_grid(loaded):
        needed |= dict.fromkeys(f"expert {name}" for name, _ in loaded.experts)
    return tuple(needed)


def _lays_grid(loaded: Experiment) -> bool:
    return loaded.config.finish.baselines and get_spec(loaded.config.optimizer.name).uses_experts


def settle_calibration(
    loaded: Experiment,
    state: RunState,
    recorder: RunRecorder,
    executor: Executor,
    stop_requested: Callable[[], bool],
) -> Calibration:
    """What fitness is measured against: from the log, else scored now and written there.

    Args:
        loaded: the experiment.
        state: what the log held when this session began.
        recorder: holds the outcomes so far; records the new ones.
        executor: where jobs run.
        stop_requested: polled.

    Raises:
        Interrupted: a person asked to stop.
        UserError: a model that scores are measured against could not be scored, or scores zero.
    """
    known = state.calibrated
    if known is not None:
        return Calibration(known.scales, known.thresholds, known.expert_fitness, known.reference_point)
    # A search that began without looks at no expert now either: its proposals would be other ones.
    needed = () if state.candidates else needed_models(loaded)
    score_jobs(PHASE, [baseline_job(loaded, name) for name in needed], recorder, executor, stop_requested)
    calibration = _calibration(loaded, recorder, _scores(loaded, recorder, needed))
    if needed or loaded.rules.constraints:
        recorder.log.append(Calibrated(**vars(calibration)))
    return calibration


def calibrated_problem(problem: Problem, calibration: Calibration) -> Problem:
    """The optimizer's problem with what is known of scores; one with a single number knows nothing of objectives."""
    if problem.num_objectives == 1:
        return problem
    return replace(problem, reference_point=calibration.reference_point, expert_fitness=calibration.expert_fitness)


def _scores(loaded: Experiment, recorder: RunRecorder, needed: Sequence[str]) -> AnchorScores:
    found: dict[str, tuple[float, ...]] = {}
    for name in needed:
        outcome = recorder.outcomes[baseline_key(name, "search")]
        if isinstance(outcome, Evaluated):
            found[name] = outcome.fitness
        elif isinstance(outcome, Failed) and loaded.rules.anchors:  # a grid can also be learnt
            raise UserError(_unscored(name, outcome))
    experts = {name: found[f"expert {name}"] for name, _ in loaded.experts if f"expert {name}" in found}
    return AnchorScores(found.get("base"), experts)


def _calibration(loaded: Experiment, recorder: RunRecorder, scores: AnchorScores) -> Calibration:
    rules, objectives = loaded.rules, recorder.objectives
    try:
        return calibrate(objectives, rules.normalise, rules.constraints, scores, recorder.reference_point)
    except ValueError as error:
        raise InvalidInput([InputProblem(f"{loaded.where}: objectives", str(error))]) from None


def _unscored(name: str, outcome: Failed) -> str:
    return (
        f"{name} could not be scored on the search documents ({outcome.kind.value}: {outcome.message}), but the "
        "experiment measures scores against it. Mend it, or set `normalise: raw` and plain numbers in `constraints`."
    )
