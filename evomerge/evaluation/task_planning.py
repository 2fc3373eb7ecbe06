"""Planning the documents of one lm-eval fitness: choice, guards, metric, fingerprints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from evomerge.errors import DataNotHere, InvalidInput, Problem
from evomerge.evaluation.documents import (
    FitnessPlan,
    MemberPlan,
    SplitPlan,
    choose,
    document_hash,
    document_ids,
    overlaps,
    split_seeds,
    without_duplicates,
)
from evomerge.evaluation.fitness_yaml import DocumentSelection, FitnessConfig
from evomerge.evaluation.lm_eval_index import Leaf, LoadedTree, TaskLibrary, load_tree, one_line
from evomerge.evaluation.lm_eval_tasks import (
    OpenTask,
    build_instances,
    direction,
    is_mean,
    metric_keys,
    open_task,
    prompts_hash,
    render,
    restrict_examples,
    settings_hash,
)
from evomerge.terms import SPLITS, SplitName

_LOCAL_DATA = ("json", "csv", "parquet", "arrow", "text", "pandas", "xml")


@dataclass
class _Draft:
    """A plan in the making: open tasks by (task, split), and what has to be told."""

    config: FitnessConfig
    opened: dict[tuple[str, str], OpenTask] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    only_data_is_missing: bool = True

    def task(self, leaf: Leaf, split: str) -> OpenTask:
        """The task on a split, built once."""
        if (leaf.name, split) not in self.opened:
            self.opened[leaf.name, split] = open_task(leaf, split, self.config)
        return self.opened[leaf.name, split]


def plan_task(config: FitnessConfig) -> tuple[FitnessPlan, list[str]]:
    """The plan of one lm-eval fitness, and remarks for people.

    Raises:
        InvalidInput: see `evomerge.evaluation.documents.plan_documents`.
    """
    assert config.task is not None
    tree = TaskLibrary(config.include_path).resolve(config.task, f"fitness {config.name}: task")
    loaded = load_tree(tree)
    seeds = split_seeds(config)
    draft = _Draft(config)
    members = [_plan_member(draft, leaf, seeds) for leaf in loaded.leaves]
    if draft.problems:
        raise (DataNotHere if draft.only_data_is_missing else InvalidInput)(draft.problems)
    if config.drop_duplicates:
        members, dropped = without_duplicates(members)
        draft.notes += [f"fitness {config.name}: {line}" for line in dropped]
        _refuse_empty(config, members)
    elif shared := overlaps(config, members):
        raise InvalidInput(shared)
    members = [_with_prompts(draft, leaf, member) for leaf, member in zip(loaded.leaves, members, strict=True)]
    first = config.roles[0]
    tasks = [draft.task(leaf, member.splits[first].source) for leaf, member in zip(loaded.leaves, members, strict=True)]
    metric, name, higher = _metric(config, tasks, [member.splits[first].indices[0] for member in members])
    plan = FitnessPlan(
        config.name,
        tuple(members),
        tree.to_json(),
        metric,
        name,
        higher,
        loaded.weight_by_size.get(metric, False),
        document_hash([_scoring_settings(config), *(settings_hash(opened.task) for opened in tasks)]),
        all(is_mean(opened.task, metric) for opened in tasks),
    )
    return plan, [*draft.notes, *_group_note(config, loaded, metric)]


def _plan_member(draft: _Draft, leaf: Leaf, seeds: dict[str, int | None]) -> MemberPlan:
    splits: dict[SplitName, SplitPlan] = {}
    assert draft.config.documents is not None
    for role, selection in draft.config.documents.items():
        assert selection.split is not None
        if problem := _reported_split_problem(draft, leaf, role, selection.split):
            draft.problems.append(problem)
            draft.only_data_is_missing = False
            continue
        try:
            splits[role] = _plan_split(draft, leaf, role, selection, seeds[selection.split])
        except InvalidInput as error:
            draft.problems += [problem for problem in error.problems if problem not in draft.problems]
            draft.only_data_is_missing &= isinstance(error, DataNotHere)
            if isinstance(error, DataNotHere):
                break  # the other roles would wait for the same data set
    return MemberPlan(leaf.name, splits)


def _plan_split(
    draft: _Draft, leaf: Leaf, role: SplitName, selection: DocumentSelection, seed: int | None
) -> SplitPlan:
    where = f"fitness {draft.config.name}: documents.{role}"
    opened = draft.task(leaf, str(selection.split))
    if not opened.documents:
        raise InvalidInput([Problem(where, f"no documents: split {selection.split!r} of {leaf.name!r} is empty")])
    ids = document_ids(opened.documents)
    indices = choose(selection, ids, seed, where)
    try:
        hashes = [render(opened.task, opened.documents[index]) for index in indices]
    except Exception as error:  # templates and functions of the user's task
        message = f"task {leaf.name!r} cannot render its documents of split {selection.split!r}: {one_line(error)}"
        raise InvalidInput([Problem(where, message)]) from None
    shown = {render(opened.task, document) for document in opened.pool} if opened.fixed_pool else set()
    keep = [place for place, key in enumerate(hashes) if key not in shown]
    if len(keep) < len(hashes):
        draft.notes.append(f"{where}: {len(hashes) - len(keep)} documents left out, they are the task's fixed examples")
    if not keep:
        raise InvalidInput([Problem(where, "no documents: all of them are among the task's few-shot examples")])
    return SplitPlan(
        opened.split,
        tuple(indices[place] for place in keep),
        tuple(ids[indices[place]] for place in keep),
        tuple(hashes[place] for place in keep),
    )


def _reported_split_problem(draft: _Draft, leaf: Leaf, role: SplitName, split: str) -> Problem | None:
    """Searching on the split a public benchmark reports is refused, or allowed and noted."""
    if role == "held_out" or leaf.config.get("dataset_path") in _LOCAL_DATA:
        return None
    own = leaf.config.get("test_split") or leaf.config.get("validation_split")
    reported = split == own and leaf.is_built_in and not split.startswith("train")
    if not reported and not split.startswith("test"):
        return None
    what = f"split {split!r} is what the benchmark {leaf.name!r} reports"
    if draft.config.allow_test_split:
        draft.notes.append(f"fitness {draft.config.name}: {role} uses {what} (allow_test_split)")
        return None
    message = f"{what}; search on another split, or set `allow_test_split: true`, which every export will record"
    return Problem(f"fitness {draft.config.name}: documents.{role}.split", message)


def _with_prompts(draft: _Draft, leaf: Leaf, member: MemberPlan) -> MemberPlan:
    splits = {}
    for role in SPLITS:
        if role not in member.splits:
            continue
        split = member.splits[role]
        opened = draft.task(leaf, split.source)
        restrict_examples(opened, forbidden_examples(member, role))
        instances = build_instances(opened, split.indices, draft.config, None)
        splits[role] = dataclasses.replace(split, prompts=prompts_hash(instances))
    return MemberPlan(member.name, splits)


def forbidden_examples(member: MemberPlan, role: SplitName) -> frozenset[str]:
    """Hashes of the documents that the prompts of a role must not show as examples: its own and the held-out ones."""
    hashes = (member.splits[name].hashes for name in (role, "held_out") if name in member.splits)
    return frozenset(key for group in hashes for key in group)


def _refuse_empty(config: FitnessConfig, members: list[MemberPlan]) -> None:
    empty = [
        Problem(f"fitness {config.name}: documents.{role}", "no documents are left: all of them are repeated later")
        for member in members
        for role, split in member.splits.items()
        if not split.indices
    ]
    if empty:
        raise InvalidInput(empty)


def _metric(config: FitnessConfig, tasks: list[OpenTask], first: list[int]) -> tuple[str, str, bool]:
    """The (metric, filter) every member reports, and its direction."""
    where = f"fitness {config.name}: metric"
    keys: list[tuple[str, str]] = []
    for position, (opened, index) in enumerate(zip(tasks, first, strict=True)):
        restrict_examples(opened, ())
        reported = metric_keys(opened.task, build_instances(opened, [index], config, None)[0])
        keys = reported if position == 0 else [key for key in keys if key in reported]
    known = ", ".join(f"{metric},{name}" for metric, name in keys) or "none that all its members share"
    matching = [
        (metric, name)
        for metric, name in keys
        if config.metric_name in (None, metric) and config.filter_name in (None, name)
    ]
    if not matching:
        message = f"task {config.task!r} does not report {config.metric!r}; it reports: {known}"
        raise InvalidInput([Problem(where, message)])
    if len(matching) > 1:
        message = f"several fit {config.metric!r}" if config.metric else "missing, and the task reports several"
        raise InvalidInput([Problem(where, f"{message}; name one of: {known}")])
    metric, name = matching[0]
    directions = {direction(opened.task, metric) for opened in tasks}
    if config.higher_is_better is not None:
        return metric, name, config.higher_is_better
    if len(directions) > 1 or None in directions:
        message = f"the task does not say whether a higher {metric!r} is better; set it here"
        raise InvalidInput([Problem(f"fitness {config.name}: higher_is_better", message)])
    return metric, name, bool(directions.pop())


def _scoring_settings(config: FitnessConfig) -> list[object]:
    return [config.apply_chat_template, config.fewshot_as_multiturn, config.system_prompt, config.gen_kwargs]


def _group_note(config: FitnessConfig, loaded: LoadedTree, metric: str) -> list[str]:
    if loaded.kind == "task" or metric in loaded.weight_by_size:
        return []
    return [f"fitness {config.name}: {loaded.kind} {config.task!r} names no weights; its {metric} is the plain mean"]
