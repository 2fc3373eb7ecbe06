"""Which documents each fitness scores in each role: chosen once on the driver, recorded, the same for the whole run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge.errors import DataNotHere, InvalidInput, Problem
from evomerge.evaluation.fitness_yaml import DocumentSelection, FitnessConfig
from evomerge.terms import SPLITS, SplitName, derive_seed

PLAN_VERSION = 1


@dataclass(frozen=True)
class SplitPlan:
    """The documents of one task in one role, in scoring order.

    Attributes:
        source: the dataset's split, or the JSONL file.
        indices: positions in that split, after the task's own processing.
        ids: the documents' ``id`` field where every chosen document has a different one, else their indices.
        hashes: of each document's rendered question, choices and answer.
        prompts: hash of every prompt (chat template apart), so that a changed task is noticed.
    """

    source: str
    indices: tuple[int, ...]
    ids: tuple[str, ...]
    hashes: tuple[str, ...]
    prompts: str = ""


@dataclass(frozen=True)
class MemberPlan:
    """One lm-eval task of a fitness (a group has several), or the one function of a Python fitness."""

    name: str
    splits: Mapping[SplitName, SplitPlan]


@dataclass(frozen=True)
class FitnessPlan:
    """Everything about one fitness that is decided before a model is there.

    Attributes:
        name: of the fitness.
        members: its tasks.
        tree: how a worker finds the task YAMLs (see lm_eval_index); empty for a Python fitness.
        metric: metric name.
        filter: lm-eval's filter name.
        higher_is_better: direction of the metric.
        weight_by_size: whether members of a group weigh by their number of documents.
        settings: hash of the task's configuration: metrics, filters, generation arguments, code.
        is_mean: whether the metric is a mean over documents in every task, and no corpus metric.
    """

    name: str
    members: tuple[MemberPlan, ...]
    tree: Mapping[str, Any] = field(default_factory=dict)
    metric: str = ""
    filter: str = ""
    higher_is_better: bool = True
    weight_by_size: bool = False
    settings: str = ""
    is_mean: bool = True

    def document_ids(self, role: SplitName) -> tuple[str, ...]:
        """Ids over all members in scoring order; a group's are ``task/id``."""
        grouped = len(self.members) > 1
        pairs = ((member.name, member.splits[role]) for member in self.members if role in member.splits)
        return tuple(f"{name}/{item}" if grouped else item for name, split in pairs for item in split.ids)


@dataclass(frozen=True)
class DocumentPlan:
    """The plan of a whole run: one entry for each fitness, and remarks for people and exports."""

    fitness: tuple[FitnessPlan, ...]
    notes: tuple[str, ...] = ()

    def of(self, name: str) -> FitnessPlan:
        """The plan of one fitness."""
        return next(plan for plan in self.fitness if plan.name == name)

    def num_documents(self, role: SplitName) -> int:
        """Documents of a role over all fitnesses."""
        return sum(len(plan.document_ids(role)) for plan in self.fitness)

    @property
    def fingerprint(self) -> str:
        """Changes when any document, prompt, metric or task setting changes; not when files only move."""
        entries = [
            {key: value for key, value in dataclasses.asdict(plan).items() if key != "tree"} for plan in self.fitness
        ]
        for split in (split for entry in entries for member in entry["members"] for split in member["splits"].values()):
            split["source"] = ""
        return _hash(json.dumps(entries, sort_keys=True))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"version": PLAN_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DocumentPlan:
        """The inverse of `to_json`.

        Raises:
            InvalidInput: written by an incompatible version.
        """
        if data.get("version") != PLAN_VERSION:
            message = f"written by another version of evomerge ({data.get('version')!r}, this is {PLAN_VERSION})"
            raise InvalidInput([Problem("document plan", message)])
        return cls(tuple(_fitness_from_json(entry) for entry in data["fitness"]), tuple(data["notes"]))

    def differences(self, other: DocumentPlan) -> list[str]:
        """What changed from this plan to another one, for the message that refuses a resume."""
        mine = {plan.name: plan for plan in self.fitness}
        theirs = {plan.name: plan for plan in other.fitness}
        lines = [f"fitness {name!r} is gone" for name in mine if name not in theirs]
        lines += [f"fitness {name!r} is new" for name in theirs if name not in mine]
        for name in (name for name in mine if name in theirs):
            lines += _fitness_differences(mine[name], theirs[name])
        return lines


def plan_documents(configs: Sequence[FitnessConfig], import_paths: Sequence[str] = ()) -> DocumentPlan:
    """Choose and record every document, and refuse what cannot give honest scores.

    Builds the tasks, needs no model.

    Args:
        configs: what `load_fitness` gave.
        import_paths: folders put on ``sys.path`` for ``python:`` fitness functions.

    Raises:
        InvalidInput: every problem of every fitness: unknown task, broken YAML, unknown metric or split, no documents,
            one document in two roles, a benchmark's reported split as search split.
        DataNotHere: nothing is wrong but that a data set is not on this machine and cannot be fetched.
    """
    plans: list[FitnessPlan] = []
    notes: list[str] = []
    problems: list[Problem] = []
    only_data_is_missing = True
    for config in configs:
        try:
            plan, remarks = _plan_one(config, import_paths)
        except InvalidInput as error:
            problems += [problem for problem in error.problems if problem not in problems]
            only_data_is_missing &= isinstance(error, DataNotHere)
            continue
        plans.append(plan)
        notes += remarks
    if problems:
        raise (DataNotHere if only_data_is_missing else InvalidInput)(problems)
    if across := _overlap_across(plans):
        raise InvalidInput(across)
    return DocumentPlan(tuple(plans), tuple(notes))


def _plan_one(config: FitnessConfig, import_paths: Sequence[str]) -> tuple[FitnessPlan, list[str]]:
    if config.python is not None:
        from evomerge.evaluation.python_fitness import plan_python

        return plan_python(config, import_paths)
    if config.cost is not None:
        from evomerge.evaluation.cost_fitness import plan_cost

        return plan_cost(config), []
    from evomerge.evaluation.task_planning import plan_task

    return plan_task(config)


def choose(selection: DocumentSelection, ids: Sequence[str], seed: int | None, where: str) -> list[int]:
    """Indices of the chosen documents, in scoring order.

    Args:
        selection: what the user asked for.
        ids: id of every document of the split.
        seed: shuffles the split; None keeps its order.
        where: fitness and role, for messages.

    Raises:
        InvalidInput: no document is left, or an id is unknown.
    """
    if selection.ids is not None:
        position = {item: index for index, item in enumerate(ids)}
        unknown = [item for item in selection.ids if item not in position]
        if unknown:
            message = f"no document has the id {unknown[0]!r} (first ids: {', '.join(ids[:3])})"
            raise InvalidInput([Problem(where, message)])
        return [position[item] for item in dict.fromkeys(selection.ids)]
    order = np.arange(len(ids))
    if seed is not None:
        order = np.random.default_rng(derive_seed("documents", seed)).permutation(len(ids))
    end = None if selection.limit is None else selection.skip + selection.limit
    chosen = [int(index) for index in order[selection.skip : end]]
    if not chosen:
        message = f"no documents: the split has {len(ids)} and {selection.skip} are skipped"
        raise InvalidInput([Problem(where, message)])
    return chosen


def split_seeds(config: FitnessConfig) -> dict[str, int | None]:
    """The one seed of each dataset split.

    A split cut into several roles is shuffled once, so that the cuts stay disjoint.

    Raises:
        InvalidInput: two roles give one split different seeds.
    """
    seeds: dict[str, int | None] = {}
    for role, selection in config.documents.items() if config.documents else ():
        source = str(selection.split or selection.path)
        old = seeds.get(source)
        if old is not None and selection.seed is not None and old != selection.seed:
            message = f"split {source!r} has seed {old} in another role and {selection.seed} here; one split, one seed"
            raise InvalidInput([Problem(f"fitness {config.name}: documents.{role}.seed", message)])
        seeds[source] = selection.seed if old is None else old
    return seeds


def document_ids(documents: Iterable[Mapping[str, Any]]) -> list[str]:
    """Each document's ``id`` field where all have one and all differ, else their indices."""
    listed = list(documents)
    ids = [str(document["id"]) for document in listed if document.get("id") is not None]
    return ids if len(set(ids)) == len(listed) else [str(index) for index in range(len(listed))]


def document_hash(parts: Any) -> str:
    """Hash of a rendered document."""
    return _hash(json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False))[:20]


def overlaps(config: FitnessConfig, members: Sequence[MemberPlan]) -> list[Problem]:
    """Documents that play two roles of one fitness, as problems."""
    problems = []
    for later_index, later in enumerate(SPLITS):
        for earlier in SPLITS[:later_index]:
            held = _hashes(members, later)
            shared = [(item, held[key]) for key, item in _hashes(members, earlier).items() if key in held]
            if shared:
                pairs = ", ".join(f"{left} = {right}" for left, right in shared[:3])
                message = (
                    f"{len(shared)} documents of `{earlier}` are also in `{later}` ({pairs}); choose disjoint documents"
                    " with `skip` and `limit`, or set `drop_duplicates: true` if the dataset repeats itself"
                )
                problems.append(Problem(f"fitness {config.name}: documents.{earlier}", message))
    return problems


def without_duplicates(members: Sequence[MemberPlan]) -> tuple[list[MemberPlan], list[str]]:
    """Leave out of search what is also in validation or held-out, and out of validation what is in held-out."""
    kept: list[MemberPlan] = []
    dropped: Counter[str] = Counter()
    for member in members:
        splits = dict(member.splits)
        for index, role in enumerate(SPLITS[:-1]):
            if role not in splits:
                continue
            taken = {key for later in SPLITS[index + 1 :] for key in _hashes(members, later)}
            split = splits[role]
            keep = [place for place, key in enumerate(split.hashes) if key not in taken]
            dropped[role] += len(split.hashes) - len(keep)
            splits[role] = dataclasses.replace(
                split,
                indices=tuple(split.indices[place] for place in keep),
                ids=tuple(split.ids[place] for place in keep),
                hashes=tuple(split.hashes[place] for place in keep),
            )
        kept.append(MemberPlan(member.name, splits))
    return kept, [f"{count} documents left out of {role}: repeated later" for role, count in dropped.items() if count]


def _hashes(members: Sequence[MemberPlan], role: SplitName) -> dict[str, str]:
    """Hash -> where it is, for messages."""
    pairs: Iterator[tuple[str, str]] = (
        (key, f"{split.source}[{item}]")
        for member in members
        if (split := member.splits.get(role)) is not None
        for key, item in zip(split.hashes, split.ids, strict=True)
    )
    return dict(pairs)


def _overlap_across(plans: Sequence[FitnessPlan]) -> list[Problem]:
    """Held-out documents of one fitness that another one searches on."""
    problems = []
    for plan in plans:
        held = _hashes(plan.members, "held_out")
        for other in plans:
            for role in ("search", "validation"):
                shared = [item for key, item in _hashes(other.members, role).items() if key in held]
                if shared and other.name != plan.name:
                    message = f"{len(shared)} documents are held out by fitness {plan.name!r} (first: {shared[0]})"
                    problems.append(Problem(f"fitness {other.name}: documents.{role}", message))
    return problems


def _fitness_differences(old: FitnessPlan, new: FitnessPlan) -> list[str]:
    lines = []
    for name in ("metric", "filter", "higher_is_better", "weight_by_size"):
        if getattr(old, name) != getattr(new, name):
            lines.append(f"fitness {old.name!r}: {name} was {getattr(old, name)!r}, is {getattr(new, name)!r}")
    if old.settings != new.settings:
        lines.append(f"fitness {old.name!r}: the task's settings or code changed")
    mine = {member.name: member for member in old.members}
    theirs = {member.name: member for member in new.members}
    if list(mine) != list(theirs):
        return [*lines, f"fitness {old.name!r}: its tasks were {', '.join(mine)}, are {', '.join(theirs)}"]
    for name, member in mine.items():
        for role in SPLITS:
            before, after = member.splits.get(role), theirs[name].splits.get(role)
            if before == after:
                continue
            if before is None or after is None or before.hashes != after.hashes or before.ids != after.ids:
                lines.append(f"fitness {old.name!r}: the {role} documents of {name!r} changed")
            else:
                lines.append(f"fitness {old.name!r}: the {role} prompts of {name!r} changed")
    return lines


def _fitness_from_json(data: Mapping[str, Any]) -> FitnessPlan:
    members = tuple(
        MemberPlan(
            member["name"],
            {
                role: SplitPlan(
                    split["source"], tuple(split["indices"]), tuple(split["ids"]), tuple(split["hashes"]),
                    split["prompts"],
                )
                for role in SPLITS
                if (split := member["splits"].get(role)) is not None
            },
        )
        for member in data["members"]
    )  # fmt: skip
    return FitnessPlan(**{**data, "members": members})


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
