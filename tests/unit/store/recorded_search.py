"""A small recorded search that the store's tests share."""

import numpy as np

from evomerge.store.events import (
    Asked,
    Evaluated,
    Event,
    Failed,
    GenerationClosed,
    RunStarted,
    Started,
    Told,
)
from evomerge.terms import FailureKind, Gene, GeneKind, Objective, Seconds

GENES = (
    Gene("attention.math", low=0.0, high=1.5),
    Gene("attention.spanish", low=0.0, high=1.5),
    Gene("rank", GeneKind.INTEGER, 1, 8, 4),
    Gene("method", GeneKind.CATEGORY, 0, 1, 0, ("linear", "ties")),
)


def make_started(genes=GENES, groups=None) -> RunStarted:
    return RunStarted(
        name="synthetic",
        evomerge="0.1.0",
        experiment_fingerprint="ab12",
        time=1_700_000_000.25,
        seeds={"run": 7, "documents": 2**62 + 1},
        objectives=(Objective("accuracy"), Objective("perplexity", higher_is_better=False, weight=0.1)),
        reference_point=(0.0, -30.0),
        genes=genes,
        gene_groups=groups or {"attention": (0, 1)},
    )


def make_events(num_candidates: int = 8, failed: tuple[int, ...] = (3,), pending: int = 1) -> list[Event]:
    """One closed generation of ``num_candidates`` and the first ``pending`` of the next."""
    rng = np.random.default_rng(0)
    asked = []
    for index in range(num_candidates + pending):
        genotype = (*(float(v) for v in rng.random(2) * 1.5), float(rng.integers(1, 9)), float(rng.integers(0, 2)))
        parents = (0, 1) if index >= num_candidates else ()
        asked.append(Asked(index, index // num_candidates, genotype, f"{index:016x}", parents))
    events: list[Event] = [make_started(), *asked[:num_candidates]]
    events.append(evaluated("baseline:uniform_soup:search", None, (0.4, -12.0)))
    for index in reversed(range(num_candidates)):
        events.append(Started(f"c{index}", 1, index % 2, 1_700_000_001.0 + index))
        if index in failed:
            events.append(
                Failed(f"c{index}", index, "search", FailureKind.TIMEOUT, "no answer in 30 s", 1, 1.7e9, 1.7e9 + 30, 2)
            )
        else:
            events.append(evaluated(f"c{index}", index, (index / 10, -10.0 - index)))
    events.append(Told(tuple(range(num_candidates))))
    events.append(GenerationClosed(0, 1_700_000_100.0, num_candidates, num_candidates - 1, 12.5))
    events.extend(asked[num_candidates:])
    return events


def evaluated(key: str, candidate: int | None, fitness: tuple[float, ...], split: str = "search") -> Evaluated:
    started = 1_700_000_010.0 + (candidate or 0)
    return Evaluated(
        key=key,
        candidate=candidate,
        split=split,
        fitness=fitness,
        metrics={"zoo_math/exact_match,last": fitness[0], "zoo_math/perplexity,none": -fitness[1]},
        seconds=Seconds(0.12, 0.5, 0.01, 0.2),
        scores_ref=f"scores/{key}.npz",
        worker=(candidate or 0) % 2,
        started=started,
        finished=started + 0.75,
        recipe_id="" if candidate is not None else "beef",
    )
