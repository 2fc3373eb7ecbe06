"""Evaluations of an earlier run for the optimizer of a new one, where both would have scored them alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from evomerge.errors import UserError
from evomerge.evaluation.documents import DocumentPlan
from evomerge.experiment.load import Experiment
from evomerge.experiment.prepare import describe_run, find_objectives
from evomerge.store.events import Event, WarmStarted
from evomerge.store.manifest import Manifest, load_manifest
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import RunState, read_state
from evomerge.terms import Gene, Objective

# Keys of a fitness that do not change what a candidate scores on the search documents.
HARMLESS = ("documents", "weight", "batch_size", "include_path", "drop_duplicates", "allow_test_split")


def load_warm_start(loaded: Experiment, plan: DocumentPlan, events: Sequence[Event] = ()) -> WarmStarted | None:
    """What ``optimizer.warm_start`` names, None where it names nothing or the log holds it already.

    Args:
        loaded: the new experiment.
        plan: its documents.
        events: the log so far.

    Raises:
        UserError: there is no such run, it has evaluated nothing, or it scored other things; the message lists what
            differs.
    """
    path = loaded.config.optimizer.warm_start
    if path is None or any(isinstance(event, WarmStarted) for event in events):
        return None
    where = f"{loaded.where}: optimizer.warm_start"
    folder, manifest = RunDir.open(path), describe_run(loaded, plan)
    old, state = load_manifest(folder.manifest_path), read_state(folder.event_log().read())
    objectives = find_objectives(loaded, plan)
    differences = [
        *_gene_differences(loaded, state),
        *_objective_differences(objectives, state),
        *_mapping_differences("model", old.models, manifest.models),
        *_mapping_differences("merge method", old.methods, manifest.methods),
        *_fitness_differences(old, manifest),
        *_document_differences(old, plan, loaded),
    ]
    differences = differences or _recipe_differences(loaded, state)
    if differences:
        lines = "\n".join(f"  {line}" for line in differences)
        raise UserError(f"{where}: {path} scored something else than this experiment:\n{lines}\nStart without it.")
    records, fitness = state.scored()
    genotypes = [record.asked.genotype for record in records]
    values = [tuple(float(value) for value in row) for row in fitness]
    if state.warm_start is not None:  # what that run itself had taken over
        genotypes = [*state.warm_start.genotypes, *genotypes]
        values = [*state.warm_start.fitness, *values]
    if not genotypes:
        raise UserError(f"{where}: {path} has no evaluated candidate yet. Start without it.")
    return WarmStarted(str(path), tuple(genotypes), tuple(values))


def _gene_differences(loaded: Experiment, state: RunState) -> list[str]:
    assert loaded.space is not None
    old, new = state.started.genes if state.started else (), loaded.space.genes
    if len(old) != len(new):
        return [f"genes: it has {len(old)}, this experiment {len(new)}"]
    for was, now in zip(old, new):
        # Where a search begins does not change what a genotype means.
        if replace(was, initial=now.initial) != now:
            return [f"genes: {_describe(was)} there, {_describe(now)} here"]
    return []


def _describe(gene: Gene) -> str:
    return f"{gene.name!r} ({gene.kind}, {', '.join(gene.choices) or f'{gene.low:g} to {gene.high:g}'})"


def _objective_differences(objectives: tuple[Objective, ...], state: RunState) -> list[str]:
    old = state.started.objectives if state.started else ()
    was, now = ([(one.name, one.higher_is_better) for one in some] for some in (old, objectives))
    if was == now:
        return []
    return [f"objectives: {', '.join(name for name, _ in was)} there, {', '.join(name for name, _ in now)} here"]


def _mapping_differences(what: str, old: Any, new: Any) -> list[str]:
    names = [*old, *(name for name in new if name not in old)]
    return [f"{what} {name!r} is another one" for name in names if old.get(name) != new.get(name)]


def _fitness_differences(old: Manifest, new: Manifest) -> list[str]:
    def settings(manifest: Manifest) -> dict[str, dict[str, Any]]:
        configs = manifest.experiment["fitness"]
        return {one.get("name", ""): {key: part for key, part in one.items() if key not in HARMLESS} for one in configs}

    was, now = settings(old), settings(new)
    return [
        f"fitness {name!r}: {key} is {now[name].get(key)!r}, was {was[name].get(key)!r}"
        for name in was
        if name in now
        for key in dict.fromkeys([*was[name], *now[name]])
        if was[name].get(key) != now[name].get(key)
    ]


def _document_differences(old: Manifest, plan: DocumentPlan, loaded: Experiment) -> list[str]:
    """Compare only what the search scores."""
    names = [config.name for config in loaded.fitness]

    def searched(whole: DocumentPlan) -> DocumentPlan:
        kept = []
        for fitness in whole.fitness:
            members = tuple(
                replace(member, splits={role: split for role, split in member.splits.items() if role == "search"})
                for member in fitness.members
            )
            kept.append(replace(fitness, members=members))
        return DocumentPlan(tuple(fitness for fitness in kept if fitness.name in names))

    return searched(DocumentPlan.from_json(old.documents)).differences(searched(plan))


def _recipe_differences(loaded: Experiment, state: RunState) -> list[str]:
    """The same genotype must be the same merge: fixed values, seeds of masks, sources."""
    assert loaded.space is not None
    for record in state.candidates:
        if loaded.space.decode(record.asked.array).recipe_id != record.asked.recipe_id:
            return [f"search space: the genotype of its candidate {record.id} is another merge here"]
    return []
