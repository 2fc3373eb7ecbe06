"""What a user writes about a fitness: one YAML file, preset or inline mapping for each objective."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from evomerge.errors import InvalidInput, Problem, did_you_mean
from evomerge.evaluation.python_objectives import ObjectiveList
from evomerge.presets import preset_dir
from evomerge.terms import SPLITS, SplitName
from evomerge.yaml_files import pydantic_problems, read_yaml_mapping

FitnessSpec = str | Path | Mapping[str, Any]

CostName = Literal["num_hops", "num_parameters", "flops_per_token", "latency", "mean_magnitude"]
_COST_OPTIONS = {
    "context": "flops_per_token", "tokens": "latency", "repeats": "latency", "parameter": "mean_magnitude",
}  # fmt: skip

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
_PYTHON = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DocumentSelection(_Frozen):
    """Which documents of a dataset split play one role.

    Attributes:
        split: name of the dataset's split; for lm-eval tasks.
        path: JSONL file, one mapping a line; for ``python:`` fitness.
        limit: number of documents, None = all that are left.
        skip: documents left out at the start.
        seed: shuffles the split before skip and limit; one split has one seed, whichever role names it.
        ids: exactly these documents (their ``id`` field, else their index) instead of skip and limit.
    """

    split: str | None = None
    path: str | None = None
    limit: int | None = Field(default=None, ge=1)
    skip: int = Field(default=0, ge=0)
    seed: int | None = None
    ids: tuple[str, ...] | None = Field(default=None, min_length=1)

    @field_validator("ids", mode="before")
    @classmethod
    def _ids_as_text(cls, value: Any) -> Any:
        return tuple(str(item) for item in value) if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if self.ids is not None and (self.limit is not None or self.skip or self.seed is not None):
            raise ValueError("`ids` names the documents one by one; drop `limit`, `skip` and `seed`")
        return self


class DocumentRoles(_Frozen):
    """The documents of each role; only ``search`` is required."""

    search: DocumentSelection
    validation: DocumentSelection | None = None
    held_out: DocumentSelection | None = None

    def items(self) -> list[tuple[SplitName, DocumentSelection]]:
        """The roles that are given, in the order search, validation, held_out."""
        pairs = ((name, getattr(self, name)) for name in SPLITS)
        return [(name, selection) for name, selection in pairs if selection is not None]


class FitnessConfig(_Frozen):
    """One fitness: an lm-eval task, group or tag with one metric, a Python function, or what a model costs.

    Attributes:
        name: of the objective; default: the file's name, else the task's.
        description: for people.
        task: lm-eval task, group or tag: built in, under fitness/tasks, or under ``include_path``; or a task's YAML.
        python: ``module:function`` instead of a task (see python_fitness).
        cost: ``num_hops``, ``num_parameters``, ``flops_per_token``, ``latency`` or ``mean_magnitude`` instead (see
            cost_fitness).
        context: positions that attention looks at, of ``flops_per_token``; None = 512.
        tokens: length of the prompt, of ``latency``; None = 128.
        repeats: measured forwards, of ``latency``; None = 5.
        parameter: whose values, of ``mean_magnitude``.
        arguments: keyword arguments of the function.
        objectives: names the function returns, when it returns more than one: a list, or a mapping from name to
            direction (or direction, weight and reference).
        metric: ``metric`` or ``metric,filter`` as lm-eval reports it; default: the task's only one.
        documents: documents of search, validation and held-out. For a group, per member.
        fewshot: examples in the prompt; None = the task's own number.
        fewshot_split: split of the dataset they come from; None = the task's own.
        fewshot_as_multiturn: with a chat template, examples are turns of the conversation.
        apply_chat_template: wrap prompts in the tokenizer's chat template.
        system_prompt: put before every prompt.
        gen_kwargs: change the task's generation arguments (``until``, ``max_gen_toks``, ...).
        weight: share in a weighted sum of objectives; a cost's is 0 unless it is given.
        reference: the worst value worth counting, natural direction; hypervolume is measured from there.
        higher_is_better: overrides the metric's own direction.
        normalise: whose score this one is divided by for the optimizer: raw, base, expert, or ``expert NAME``; None =
            what the experiment says.
        allow_test_split: allow searching on the split a benchmark reports; recorded in every export.
        drop_duplicates: leave out of search (and validation) what also occurs in a later role, instead of refusing.
        batch_size: rows of one forward, None = the evaluator's default.
        confirm_run_unsafe_code: allow a task that runs generated code.
        exact: score through lm-eval's own code, batch by batch.
        include_path: folders with further task YAMLs, relative to this file.
    """

    name: str = ""
    description: str = ""
    task: str | None = None
    python: str | None = None
    cost: CostName | None = None
    context: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    repeats: int | None = Field(default=None, ge=1)
    parameter: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    objectives: ObjectiveList = ()
    metric: str | None = None
    documents: DocumentRoles | None = None
    fewshot: int | None = Field(default=None, ge=0)
    fewshot_split: str | None = None
    fewshot_as_multiturn: bool = True
    apply_chat_template: bool = False
    system_prompt: str | None = None
    gen_kwargs: dict[str, Any] = Field(default_factory=dict)
    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    reference: float | None = Field(default=None, allow_inf_nan=False)
    higher_is_better: bool | None = None
    normalise: str | None = None
    allow_test_split: bool = False
    drop_duplicates: bool = False
    batch_size: int | None = Field(default=None, ge=1)
    confirm_run_unsafe_code: bool = False
    exact: bool = False
    include_path: tuple[str, ...] = ()

    @field_validator("include_path", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if value and not _NAME.fullmatch(value):
            raise ValueError(f"a name is letters, digits and _ . : - without spaces, got {value!r}")
        return value

    @field_validator("python")
    @classmethod
    def _module_and_function(cls, value: str | None) -> str | None:
        if value is not None and not _PYTHON.fullmatch(value):
            raise ValueError(f"expected `module:function`, got {value!r}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _costs_weigh_nothing(cls, value: Any) -> Any:
        """A cost is in a unit of its own, so it has a share in weighted sums only where the user gives one."""
        is_cost = isinstance(value, Mapping) and value.get("cost") is not None
        return {"weight": 0.0, **value} if is_cost else value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(kind is not None for kind in (self.task, self.python, self.cost)) != 1:
            raise ValueError(
                "exactly one of `task` (an lm-eval task), `python` (module:function) and `cost` (num_hops, ...) "
                "is needed"
            )
        if self.reference is not None and self.objectives:
            raise ValueError(
                "`reference` belongs to a fitness of one objective; with several write "
                "`objectives: {name: {direction: minimize, reference: 64}}`"
            )
        for name, cost in _COST_OPTIONS.items():
            if getattr(self, name) is not None and self.cost != cost:
                raise ValueError(f"`{name}` belongs to `cost: {cost}`")
        if self.cost is not None:
            self._check_cost()
        elif self.python is not None:
            self._check_python()
        else:
            self._check_task()
        return self

    def _check_cost(self) -> None:
        allowed = {"name", "description", "cost", "weight", "reference", *_COST_OPTIONS}
        given = [
            name for name, entry in type(self).model_fields.items()
            if name not in allowed and getattr(self, name) != entry.get_default(call_default_factory=True)
        ]  # fmt: skip
        if given:
            raise ValueError(f"`{given[0]}` does not go with `cost`: costs have no documents and are always lowered")
        if self.cost == "mean_magnitude" and self.parameter is None:
            raise ValueError("`parameter` is missing: the hyperparameter whose values are penalised, for example scale")

    def _check_python(self) -> None:
        if isinstance(self.objectives, dict) and self.higher_is_better is not None:
            raise ValueError("`objectives` names a direction for each; drop `higher_is_better`")
        task_only = ("metric", "fewshot", "fewshot_split", "gen_kwargs", "system_prompt", "exact", "include_path")
        given = [name for name in task_only if getattr(self, name)]
        if given:
            raise ValueError(f"`{given[0]}` belongs to lm-eval tasks, not to a `python` fitness")
        for role, selection in self.documents.items() if self.documents else ():
            if selection.path is None or selection.split is not None:
                raise ValueError(f"documents.{role}: a `python` fitness reads its documents from `path` (JSONL)")

    def _check_task(self) -> None:
        if self.objectives:
            raise ValueError("`objectives` belongs to a `python` fitness; a task has one `metric`")
        if self.arguments:
            raise ValueError("`arguments` belongs to a `python` fitness")
        if self.documents is None:
            raise ValueError("`documents` is missing, for example {search: {split: train, limit: 200}}")
        for role, selection in self.documents.items():
            if selection.split is None or selection.path is not None:
                raise ValueError(f"documents.{role}: a task's documents come from a `split` of its dataset")

    @property
    def metric_name(self) -> str | None:
        """Metric without the filter."""
        return self.metric.partition(",")[0].strip() if self.metric else None

    @property
    def filter_name(self) -> str | None:
        """Filter, None when the file leaves it out."""
        return self.metric.partition(",")[2].strip() or None if self.metric else None

    @property
    def roles(self) -> tuple[SplitName, ...]:
        """Roles it can be scored in: those that have documents, all for a cost."""
        if self.cost is not None:
            return SPLITS
        return tuple(role for role, _ in self.documents.items()) if self.documents else ()


def fitness_presets() -> dict[str, Path]:
    """The shipped fitness files by name."""
    return {path.stem: path for path in sorted(preset_dir("fitness").glob("*.yaml"))}


def load_fitness(
    specs: FitnessSpec | Sequence[FitnessSpec], where: str = "fitness", base_dir: Path | None = None
) -> list[FitnessConfig]:
    """Resolve presets, files and inline mappings.

    An inline mapping may start from another one: ``{preset: zoo_math_en, weight: 2}``.

    Args:
        specs: one or several of: preset name, path of a YAML file, mapping.
        where: file and key the specs stand in, for messages.
        base_dir: folder relative paths are relative to; default: the working directory.

    Raises:
        InvalidInput: every problem of every spec.
    """
    listed = [specs] if isinstance(specs, str | Path | Mapping) else list(specs)
    base = base_dir or Path.cwd()
    configs: list[FitnessConfig] = []
    problems: list[Problem] = [] if listed else [Problem(where, "at least one fitness is needed")]
    for index, spec in enumerate(listed):
        place = f"{where}[{index}]" if len(listed) > 1 else where
        try:
            configs.append(_load_one(spec, place, base))
        except InvalidInput as error:
            problems += error.problems
    names = [name for config in configs for name in objective_names(config)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    problems += [Problem(where, f"two objectives are called {name!r}; set `name` on one of them") for name in repeated]
    if problems:
        raise InvalidInput(problems)
    return configs


def objective_names(config: FitnessConfig) -> tuple[str, ...]:
    """Names of the objectives this fitness gives."""
    return tuple(f"{config.name}/{name}" for name in config.objectives) or (config.name,)


def _load_one(spec: FitnessSpec, where: str, base: Path) -> FitnessConfig:
    mapping, place, folder, default_name = _read(spec, where, base)
    try:
        config = FitnessConfig.model_validate(mapping)
    except ValidationError as error:
        raise InvalidInput(pydantic_problems(error, place, FitnessConfig)) from None
    task = Path(config.task).stem if config.task and config.task.endswith((".yaml", ".yml")) else config.task
    default = default_name or task or _cost_name(config) or str(config.python).replace(":", ".")
    name = config.name or re.sub(r"[^A-Za-z0-9_.:-]", "_", default)
    return config.model_copy(update={"name": name, **_absolute_paths(config, folder)})


def _cost_name(config: FitnessConfig) -> str | None:
    return config.cost if config.parameter is None else f"mean_{config.parameter}"


def _absolute_paths(config: FitnessConfig, folder: Path) -> dict[str, Any]:
    changes: dict[str, Any] = {"include_path": tuple(str((folder / path).resolve()) for path in config.include_path)}
    if config.task is not None and config.task.endswith((".yaml", ".yml")):
        changes["task"] = str((folder / config.task).resolve())
    if config.documents is not None:
        roles: dict[str, Any] = {
            role: selection.model_copy(update={"path": str((folder / selection.path).resolve())})
            for role, selection in config.documents.items()
            if selection.path is not None
        }
        changes["documents"] = config.documents.model_copy(update=roles)
    return changes


def _read(spec: FitnessSpec, where: str, base: Path) -> tuple[dict[str, Any], str, Path, str]:
    """The mapping, what to call its place, the folder its paths are relative to, and its default name."""
    if not isinstance(spec, str | Path | Mapping):
        raise InvalidInput([Problem(where, f"expected a fitness name, file or mapping, got {spec!r}")])
    if isinstance(spec, Mapping):
        mapping = dict(spec)
        if isinstance(paths := mapping.get("include_path"), list):
            mapping["include_path"] = [str(base / path) for path in paths]
        if "preset" not in mapping:
            return mapping, where, base, ""
        origin = mapping.pop("preset")
        if not isinstance(origin, str):
            raise InvalidInput([Problem(f"{where}: preset", f"expected a fitness name or file, got {origin!r}")])
        lower, _, folder, name = _read(origin, f"{where}: preset", base)
        return _overlay(lower, mapping), where, folder, name
    presets = fitness_presets()
    if str(spec) in presets:
        path = presets[str(spec)]
    elif isinstance(spec, Path) or spec.endswith((".yaml", ".yml")) or "/" in spec:
        path = (base / Path(spec).expanduser()).resolve()
    else:
        hint = did_you_mean(spec, presets)
        task = f"An lm-eval task is written {{task: {spec}, documents: {{search: {{split: ..., limit: ...}}}}}}."
        raise InvalidInput([Problem(where, f"no fitness preset is called {spec!r}. {hint} {task}")])
    return read_yaml_mapping(path), str(path), path.parent, path.stem


def _overlay(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(lower)
    for key, value in upper.items():
        old = merged.get(key)
        merged[key] = _overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
