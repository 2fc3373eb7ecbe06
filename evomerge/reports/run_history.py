"""How a search went: its scores and the best of them, by evaluations and by seconds. From the state of a log only."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.store.events import Evaluated
from evomerge.store.run_state import RunState


@dataclass(frozen=True)
class Step:
    """A finished candidate that has a fitness.

    Attributes:
        candidate: its id.
        evaluations: how many candidates had finished with it, failures included.
        seconds: of the run, pauses between sessions left out.
        value: its one number, in its natural direction.
        best: the best one number so far.
        best_candidate: whose it is.
    """

    candidate: int
    evaluations: int
    seconds: float
    value: float
    best: float
    best_candidate: int


@dataclass(frozen=True)
class GenerationStep:
    """A closed generation: where it ended, and the middle of its candidates' numbers."""

    generation: int
    evaluations: int
    seconds: float
    low: float | None
    median: float | None
    high: float | None
    hypervolume: float | None


@dataclass(frozen=True)
class History:
    """A search so far.

    Attributes:
        steps: in order of completion.
        generations: the closed ones; ``low`` and ``high`` are their quartiles.
        baselines: (name, one number) on the search documents, best first.
        label: what the one number is.
        higher_is_better: its direction.
    """

    steps: tuple[Step, ...]
    generations: tuple[GenerationStep, ...]
    baselines: tuple[tuple[str, float], ...]
    label: str
    higher_is_better: bool = True


def read_history(state: RunState, score: Callable[[tuple[float, ...]], float], label: str) -> History:
    """The history of a run.

    Args:
        state: the log's state.
        score: raw fitness ``(M,)`` to the one number by which candidates are compared, higher is better.
        label: what that number is; with a single objective its own values and name are shown instead.
    """
    assert state.started is not None
    objectives = state.started.objectives
    single = objectives[0] if len(objectives) == 1 else None
    higher = single is None or single.higher_is_better

    def shown(fitness: tuple[float, ...]) -> float:
        return score(fitness) if single is None else single.natural(fitness[0])

    clock = run_clock(state.sessions)
    steps: list[Step] = []
    finished = 0
    best: tuple[tuple[float, float], Evaluated] | None = None
    for outcome in state.outcomes.values():
        if outcome.candidate is None:
            continue
        finished += 1
        if not isinstance(outcome, Evaluated):
            continue
        rank = (-outcome.violation, score(outcome.fitness))
        if best is None or rank > best[0]:
            best = rank, outcome
        assert best[1].candidate is not None
        steps.append(
            Step(
                outcome.candidate, finished, clock(outcome.finished), shown(outcome.fitness),
                shown(best[1].fitness), best[1].candidate,
            )
        )  # fmt: skip
    generations = tuple(_generations(state, {step.candidate: step.value for step in steps}, clock))
    baselines = sorted(_baselines(state, shown), key=lambda entry: -entry[1] if higher else entry[1])
    name = label if single is None else single.name + (f" ({single.unit})" if single.unit else "")
    return History(tuple(steps), generations, tuple(baselines), name, higher)


def run_clock(sessions: Sequence[tuple[float, float]]) -> Callable[[float], float]:
    """From Unix seconds to seconds of a run, which stands still between its sessions.

    Args:
        sessions: first and last sign of life of each.
    """
    starts = [first for first, _ in sessions]
    before = [0.0]
    for first, last in sessions:
        before.append(before[-1] + max(0.0, last - first))

    def seconds(time: float) -> float:
        index = max(0, bisect_right(starts, time) - 1)
        first, last = sessions[index]
        return before[index] + min(max(0.0, time - first), max(0.0, last - first))

    return seconds


def thinned(steps: Sequence[Step], most: int) -> list[Step]:
    """At most about so many steps, evenly spaced, every new best among them."""
    if len(steps) <= most:
        return list(steps)
    stride = len(steps) / most
    kept = {int(index * stride) for index in range(most)}
    return [
        step for index, step in enumerate(steps) if index in kept or step.candidate == step.best_candidate
    ]  # fmt: skip


def _generations(state: RunState, values: dict[int, float], clock: Callable[[float], float]) -> list[GenerationStep]:
    members: dict[int, list[float]] = {}
    for record in state.candidates:
        if record.id in values:
            members.setdefault(record.asked.generation, []).append(values[record.id])
    found = []
    for closed in state.generations:
        inside = members.get(closed.generation, [])
        low: float | None = None
        median: float | None = None
        high: float | None = None
        if inside:
            low, median, high = (float(value) for value in np.quantile(inside, [0.25, 0.5, 0.75]))
        place = closed.evaluations, clock(closed.time)
        found.append(GenerationStep(closed.generation, *place, low, median, high, closed.hypervolume))
    return found


def _baselines(state: RunState, shown: Callable[[tuple[float, ...]], float]) -> list[tuple[str, float]]:
    return [
        (key.split(":", 1)[1].rpartition(":")[0], shown(outcome.fitness))
        for key, outcome in state.outcomes.items()
        if key.startswith("baseline:") and outcome.split == "search" and isinstance(outcome, Evaluated)
    ]
