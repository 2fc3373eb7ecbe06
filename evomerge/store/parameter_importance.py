"""Which parameters decided who is among the best candidates: PED-ANOVA on the finished trials of a run."""

from __future__ import annotations

import math
import warnings

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, create_trial

from evomerge.store.optuna_study import distribution_of
from evomerge.store.run_state import RunState
from evomerge.store.study_columns import MIN_TRIALS, plan_columns
from evomerge.terms import Array

MAX_PARAMETERS = 64
# PED-ANOVA compares the best tenth with all; with few trials the best five, as its documentation advises.
BEST_SHARE, BEST_TRIALS = 0.1, 5


class _Target:
    """What PED-ANOVA lowers: one number for each trial, by its number."""

    def __init__(self, losses: Array) -> None:
        self._losses = losses

    def __call__(self, trial: FrozenTrial) -> float:
        return float(self._losses[trial.number])


def parameter_importance(state: RunState) -> tuple[tuple[str, tuple[tuple[str, float], ...]], ...]:
    """(objective, ((parameter, share), ...)), for each objective that differs between candidates.

    Long genotypes are taken as means over their gene groups, as in the study.

    Args:
        state: of a run.

    Returns:
        Shares add up to 1 for each objective, largest first; empty with fewer than 20 scored candidates.

    Reference: Watanabe et al. 2023, PED-ANOVA, https://arxiv.org/abs/2304.10255.
    """
    records, fitness = state.scored()
    if state.started is None or len(records) < MIN_TRIALS:
        return ()
    columns = plan_columns(state.started.genes, state.started.gene_groups, MAX_PARAMETERS)
    distributions = {column.name: distribution_of(column) for column in columns}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    trials = []
    for number, record in enumerate(records):
        genotype = record.asked.array
        params = {column.name: column.value(genotype) for column in columns}
        trials.append(create_trial(value=float(number), params=params, distributions=distributions))
    study.add_trials(trials)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(BEST_SHARE, BEST_TRIALS / len(records))))
    found = []
    for index, objective in enumerate(state.started.objectives):
        losses: Array = -fitness[:, index]
        if losses.min() == losses.max():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that lower values are better, which is so here
            shares = get_param_importances(study, evaluator=evaluator, target=_Target(losses), normalize=False)
        total = math.fsum(shares.values())
        if total > 0:
            ordered = sorted(shares.items(), key=lambda entry: (-entry[1], entry[0]))
            found.append((objective.name, tuple((name, share / total) for name, share in ordered)))
    return tuple(found)
