"""What optimizers are told of a batch, stopped candidates included: the one place where that is decided.

A stopped candidate has no number that may stand beside a fitness over all documents. It is told without one, with a
*standing* among stopped candidates; optimizers put it behind every complete candidate they rank it with
(`evomerge.search.stopped_last`). With one objective the standing is the most its value can be: the value of the
candidate it was behind plus the upper confidence bound of the difference. With several it is that bound alone, in the
objective where it came nearest. Between equals the one that came further stands higher.

A candidate whose fitness was estimated is told its estimate, also after it was completed: all of one generation are
estimates of one kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from evomerge.search.base import Result
from evomerge.terms import Candidate, Evaluation

Scalariser = Callable[[tuple[float, ...]], tuple[float, ...]]


def told_results(
    ids: Sequence[int],
    candidates: Mapping[int, Candidate],
    evaluations: Mapping[int, Evaluation],
    scalarise: Scalariser,
    constrain: Scalariser,
) -> list[Result]:
    """A batch as the optimizer is told it.

    Args:
        ids: the batch.
        candidates: by id.
        evaluations: by id; those that stopped candidates were behind are among them.
        scalarise: fitness ``(M,)`` to what the optimizer is told.
        constrain: fitness ``(M,)`` to constraint values.
    """
    results = []
    for key in ids:
        evaluation, genotype = evaluations[key], candidates[key].genotype.copy()
        if evaluation.estimate is not None:
            estimated = evaluation.estimate.fitness
            results.append(Result(key, genotype, scalarise(estimated), constrain(estimated)))
        elif evaluation.ok:
            results.append(Result(key, genotype, scalarise(evaluation.fitness), constrain(evaluation.fitness)))
        elif evaluation.stop is None:
            results.append(Result(key, genotype, None))
        else:
            reference = scalarise(evaluations[evaluation.stop.against].fitness)
            results.append(Result(key, genotype, None, standing=_standing(evaluation, reference)))
    return results


def _standing(evaluation: Evaluation, reference: tuple[float, ...]) -> tuple[float, ...]:
    assert evaluation.stop is not None
    stop = evaluation.stop
    most = reference[0] + stop.upper if len(reference) == 1 else stop.upper
    return (most, float(stop.documents))
