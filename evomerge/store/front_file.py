"""The front and the best recipe as files a person can open while the run goes on; rewritten whole each generation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from evomerge.errors import UserError
from evomerge.files import atomic_write_json, atomic_write_text
from evomerge.store.run_dir import RunDir
from evomerge.terms import Objective

_VERSION = 1


@dataclass(frozen=True)
class FrontEntry:
    """One candidate of the front; ``fitness`` is ``(M,)`` maximised, ``recipe`` its YAML text where known.

    ``constraints`` says for each constraint by what share of its bound it is missed; zero or less where it is kept.
    """

    candidate: int
    recipe_id: str
    generation: int
    fitness: tuple[float, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    recipe: str = ""
    constraints: tuple[float, ...] = ()

    @property
    def is_feasible(self) -> bool:
        """Whether all constraints are kept."""
        return all(value <= 0 for value in self.constraints)


@dataclass(frozen=True)
class Front:
    """The front after some generation.

    Attributes:
        objectives: in the order of every fitness.
        entries: non-dominated candidates, best weighted sum first by habit.
        generation: the last closed one, or -1.
        evaluations: search evaluations so far.
        best: id of the best candidate by weighted sum, or None.
        hypervolume: on the maximised scale from ``reference_point``, or None.
        reference_point: ``(M,)``, empty when there is none.
        constraints: as the experiment writes them.
    """

    objectives: tuple[Objective, ...]
    entries: tuple[FrontEntry, ...]
    generation: int
    evaluations: int
    best: int | None = None
    hypervolume: float | None = None
    reference_point: tuple[float, ...] = ()
    constraints: tuple[str, ...] = ()


def write_front(run_dir: RunDir, front: Front) -> None:
    """Replace ``front.json``. Values in it are the metrics in their natural direction, by objective name.

    Raises:
        UserError: the disk is full or the file cannot be written.
    """
    entries = [
        {
            "candidate": entry.candidate,
            "recipe_id": entry.recipe_id,
            "generation": entry.generation,
            "values": {
                objective.name: objective.natural(value)
                for objective, value in zip(front.objectives, entry.fitness, strict=True)
            },
            "feasible": entry.is_feasible,
            "constraints": list(entry.constraints),
            "metrics": dict(entry.metrics),
            "recipe": entry.recipe,
        }
        for entry in front.entries
    ]
    value: dict[str, Any] = {
        "v": _VERSION,
        "generation": front.generation,
        "evaluations": front.evaluations,
        "best": front.best,
        "hypervolume": front.hypervolume,
        "reference_point": list(front.reference_point),
        "constraints": list(front.constraints),
        "objectives": [asdict(objective) for objective in front.objectives],
        "front": entries,
    }
    try:
        atomic_write_json(run_dir.front_path, value)
    except OSError as error:
        raise UserError(f"{run_dir.front_path}: cannot write the front: {error.strerror or error}.") from error


def read_front(run_dir: RunDir) -> Front | None:
    """The last front written, or None when there is none yet.

    Raises:
        UserError: the file is damaged; it can be rebuilt from the event log.
    """
    path = run_dir.front_path
    try:
        value = json.loads(path.read_text())
        if value["v"] != _VERSION:
            raise ValueError(f"schema version {value['v']}, this evomerge reads {_VERSION}")
        objectives = tuple(Objective(**entry) for entry in value["objectives"])
        return Front(
            objectives=objectives,
            entries=tuple(_read_entry(entry, objectives) for entry in value["front"]),
            generation=value["generation"],
            evaluations=value["evaluations"],
            best=value["best"],
            hypervolume=value["hypervolume"],
            reference_point=tuple(value["reference_point"]),
            constraints=tuple(value.get("constraints", ())),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: the front file is damaged ({error}). Remove it; a resume writes it anew.") from error


def write_best_recipe(run_dir: RunDir, recipe_yaml: str, about: Sequence[str] = ()) -> None:
    """Replace ``best/recipe.yaml``, unless it says the same already.

    Args:
        run_dir: the run.
        recipe_yaml: the recipe's text.
        about: lines put above it as comments, for example the candidate and its scores.

    Raises:
        UserError: the disk is full or the file cannot be written.
    """
    text = "".join(f"# {line}\n" for line in about) + recipe_yaml
    path = run_dir.best_recipe_path
    try:
        if not path.exists() or path.read_text() != text:
            atomic_write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot write the best recipe: {error.strerror or error}.") from error


def _read_entry(entry: dict[str, Any], objectives: tuple[Objective, ...]) -> FrontEntry:
    # ``natural`` is its own inverse.
    fitness = tuple(objective.natural(entry["values"][objective.name]) for objective in objectives)
    return FrontEntry(
        entry["candidate"],
        entry["recipe_id"],
        entry["generation"],
        fitness,
        entry["metrics"],
        entry["recipe"],
        tuple(entry.get("constraints", ())),
    )
