"""The log of a search that never was, with as many objectives, candidates and failures as a test wants."""

import numpy as np

from evomerge.store.events import Asked, Evaluated, Event, Failed, GenerationClosed, RunFinished, RunStarted, Told
from evomerge.store.run_state import RunState, read_state
from evomerge.terms import FailureKind, Gene, Objective, Seconds

START = 1_700_000_000.0
POPULATION = 8


def recorded_state(
    candidates: int, objectives: int = 2, failing: float = 0.1, lowered: tuple[int, ...] = (), finished: bool = True
) -> RunState:
    """A search in generations of eight, each candidate two seconds after the one before."""
    rng = np.random.default_rng(3)
    signs = np.array([-1.0 if index in lowered else 1.0 for index in range(objectives)])
    goals = tuple(Objective(f"task_{index}", index not in lowered) for index in range(objectives))
    genes = tuple(Gene(f"coefficient/e{index}", high=1.5) for index in range(3))
    events: list[Event] = [RunStarted("toy", "test", "f", START, {"run": 1}, goals, (), genes)]
    for number in range(2):
        fitness = tuple(float(value) for value in signs * rng.random(objectives) * 0.5)
        events.append(_evaluated(f"baseline:b{number}:search", None, fitness, START + number))
    time = START + 2
    for generation, first in enumerate(range(0, candidates, POPULATION)):
        numbers = range(first, min(candidates, first + POPULATION))
        genotypes = rng.random((len(numbers), 3)) * 1.5
        for number, row in zip(numbers, genotypes):
            events.append(Asked(number, generation, tuple(map(float, row)), f"{number:016x}"))
        for number, row in zip(numbers, genotypes):
            time += 2.0
            if rng.random() < failing:
                kind = FailureKind.TIMEOUT if number % 2 else FailureKind.EXCEPTION
                events.append(
                    Failed(f"c{number}", number, "search", kind, "<b>too</b> late & lost", 0, time - 1.5, time)
                )
                continue
            values = signs * (0.8 - np.abs(row[0] - np.linspace(0.2, 1.2, objectives)) / 2 + rng.random(objectives) / 9)
            events.append(_evaluated(f"c{number}", number, tuple(map(float, values)), time - 1.5))
        events.append(Told(tuple(numbers)))
        events.append(GenerationClosed(generation, time, numbers[-1] + 1, None, 0.1 * generation))
    return read_state([*events, RunFinished("evaluations", time + 1)] if finished else events)


def _evaluated(key: str, candidate: int | None, fitness: tuple[float, ...], started: float) -> Evaluated:
    seconds = Seconds(0.2, 1.0, 0.3, 0.5)
    return Evaluated(key, candidate, "search", fitness, seconds=seconds, started=started, finished=started + 1.5)
