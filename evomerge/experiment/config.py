"""The experiment file's schema: the keys a user may write, their types, ranges and defaults. Nothing is loaded here."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from evomerge.recipes.recipe import Source
from evomerge.recipes.recipe_reader import parse_source
from evomerge.search.scalarise import Scalarisation

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(value: Any) -> Any:
    """Seconds from a number of seconds or a text such as ``90s``, ``20m``, ``2h``, ``1d``, ``1h30m``."""
    if not isinstance(value, str):
        return value
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd])", value)
    if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*([smhd])", "", value).strip():
        raise ValueError(f"expected a duration such as 90s, 20m, 2h or 1h30m, got {value!r}")
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def parse_bytes(value: Any) -> Any:
    """Bytes from a number or a text such as ``800MB`` or ``4GB``."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)B?\s*", value)
    if not match:
        raise ValueError(f"expected a size such as 800MB or 4GB, got {value!r}")
    return int(float(match[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}[match[2]])


DurationSeconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
SizeBytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
SizeBytesOrNone = Annotated[int, BeforeValidator(parse_bytes), Field(ge=0)]


class Strict(BaseModel):
    """Unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceConfig(Strict):
    """A model: a hub id, a local directory or ``zoo:<name>``, optionally with a LoRA adapter."""

    model: str = Field(min_length=1)
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return {key: part for key, part in vars(parse_source(value)).items() if part is not None}

    def source(self) -> Source:
        """The recipe's form of this model."""
        return Source(self.model, self.revision, self.adapter, self.adapter_revision)


class ModelsConfig(Strict):
    """The base (common ancestor), the experts to merge, and what earlier stages found (name to recipe).

    ``merge`` names those experts and stages that a parameter space merges; None = all experts.
    """

    base: SourceConfig | None = None
    experts: dict[str, SourceConfig] = Field(min_length=1)
    stages: dict[str, dict[str, Any]] = Field(default_factory=dict)
    merge: list[str] | None = Field(default=None, min_length=1)

    @field_validator("experts", mode="before")
    @classmethod
    def _names_from_list(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        names = [re.sub(r"[^\w.-]+", "_", str(item).split("@")[0].rstrip("/").split("/")[-1]) for item in value]
        if len(set(names)) != len(names):
            raise ValueError("two experts have the same last path part; write experts as a mapping name: model")
        return dict(zip(names, value))

    @field_validator("experts")
    @classmethod
    def _names_are_words(cls, value: dict[str, SourceConfig]) -> dict[str, SourceConfig]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z][\w.-]*", name):
                raise ValueError(f"expert name {name!r} must be a word (letters, digits, _ . -)")
        return value


class OptimizerConfig(BaseModel):
    """Name, mode and start of the optimizer; every other key is a setting of that optimizer."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    mode: Literal["generational", "steady_state"] = "generational"
    warm_start: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that belong to the optimizer itself."""
        return dict(self.model_extra or {})


class BudgetConfig(Strict):
    """When the search ends: whichever limit is reached first."""

    evaluations: int | None = Field(default=None, gt=0)
    wall_time: DurationSeconds | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> BudgetConfig:
        if self.evaluations is None and self.wall_time is None:
            raise ValueError("give evaluations, wall_time, or both")
        return self


class VllmConfig(Strict):
    """vLLM in a process and a Python environment of its own; see docs/vllm.md."""

    python: str = Field(min_length=1)
    tensor_parallel: int = Field(default=1, ge=1)
    gpu_memory_utilization: float = Field(default=0.85, gt=0, lt=1)
    max_model_len: int | None = Field(default=None, gt=0)
    enforce_eager: bool = False


class RuntimeConfig(Strict):
    """Where and how candidates are merged and scored."""

    executor: Literal["inline", "ray"] = "ray"
    workers: int | Literal["auto"] = "auto"
    gpus_per_worker: float | Literal["auto"] = "auto"
    threads: int | Literal["auto"] = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["hf", "vllm"] = "hf"
    vllm: VllmConfig | None = None
    batch_size: int | None = Field(default=None, gt=0)
    deadline: DurationSeconds | None = None
    max_attempts: int = Field(default=2, ge=1, le=10)
    address: str | None = None
    state_memory: SizeBytes | None = None
    prefix_cache: SizeBytesOrNone | None = None
    scorer: Literal["fast", "exact"] = "fast"
    pass_tokens: int | None = Field(default=None, gt=0)
    score_cache: bool | Annotated[str, Field(min_length=1)] = False

    @field_validator("workers", "threads")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("expected a whole number of at least 1, or auto")
        return value

    @field_validator("gpus_per_worker")
    @classmethod
    def _not_negative(cls, value: float | str) -> float | str:
        if isinstance(value, float | int) and value < 0:
            raise ValueError("expected a number of at least 0, or auto")
        return value


class FinishConfig(Strict):
    """What happens after the search."""

    baselines: bool = True
    task_arithmetic: tuple[float, ...] = (0.5, 0.7, 1.0)
    ties_density: float = Field(default=0.3, gt=0, le=1)
    top_k: int = Field(default=5, ge=1)
    front_size: int = Field(default=20, ge=1)
    held_out: bool = True
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    bootstrap_samples: int = Field(default=10_000, ge=100)


class ObjectivesConfig(Strict):
    """How scores become what optimizers are told.

    ``ideal`` is for ``scalarisation: tchebycheff``: by objective, the best value there can be, in its own direction and
    after normalising.
    """

    normalise: str = "raw"
    ideal: dict[str, float] = Field(default_factory=dict)


class RacingConfig(Strict):
    """Stopping candidates that are clearly behind after some of their documents."""

    rule: Literal["betting", "wilcoxon", "halving"] = "betting"
    level: float | Literal["auto"] = "auto"
    rungs: int = Field(default=8, ge=2, le=100)
    first: int | Literal["auto"] = "auto"
    sizes: Literal["geometric", "equal"] = "geometric"
    min_documents: int = Field(default=16, ge=2)
    eta: float = Field(default=3.0, gt=1, le=100)
    audit: float = Field(default=0.05, ge=0, le=1)

    @field_validator("level")
    @classmethod
    def _probability(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 < value < 0.5:
            raise ValueError("expected a probability between 0 and 0.5, or auto")
        return value

    @field_validator("first")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("expected a number of documents, or auto")
        return value

    @property
    def error_rate(self) -> float:
        """The level, where it is not given the rule's own."""
        return LEVELS[self.rule] if self.level == "auto" else float(self.level)


class DriftConfig(Strict):
    """When estimates no longer agree with full scores."""

    tolerance: float = Field(default=0.02, ge=0)
    level: float = Field(default=0.01, gt=0, lt=0.5)
    min_rank: float = Field(default=0.2, ge=-1, le=1)
    growth: float = Field(default=2.0, gt=1, le=100)


class EstimationConfig(Strict):
    """Scoring candidates on some documents and estimating their fitness."""

    estimator: Literal["p_irt", "mp_irt", "gp_irt", "mean"] = "p_irt"
    documents: int | float = 0.3
    full_generations: int = Field(default=1, ge=0)
    full_every: int = Field(default=5, ge=1)
    leaders: int = Field(default=3, ge=1)
    sampled: int = Field(default=3, ge=0)
    drift: DriftConfig | Literal["off"] = DriftConfig()

    @field_validator("documents")
    @classmethod
    def _number_or_share(cls, value: int | float) -> int | float:
        if value < 1 if isinstance(value, int) else not 0 < value < 1:
            raise ValueError("expected a number of documents, or a share between 0 and 1")
        return value

    @field_validator("drift", mode="before")
    @classmethod
    def _guarded(cls, value: Any) -> Any:
        return {True: {}, False: "off", "on": {}}.get(value, value) if isinstance(value, bool | str) else value


SWITCHES: dict[Any, Any] = {True: {}, False: None, "on": {}, "off": None}
LEVELS = {"betting": 0.3, "wilcoxon": 0.05, "halving": 0.3}  # docs/benchmarks.md; halving does not look at it


class ExperimentConfig(Strict):
    """One experiment file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    description: str = ""
    models: ModelsConfig
    search_space: str | dict[str, Any]
    fitness: list[str | dict[str, Any]] = Field(min_length=1)
    report: list[str | dict[str, Any]] = Field(default_factory=list)
    objectives: ObjectivesConfig = ObjectivesConfig()
    constraints: list[str] = Field(default_factory=list)
    scalarisation: Scalarisation = "weighted_mean"
    optimizer: OptimizerConfig
    budget: BudgetConfig
    runtime: RuntimeConfig = RuntimeConfig()
    finish: FinishConfig = FinishConfig()
    racing: RacingConfig | None = None
    estimation: EstimationConfig | None = None
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    storage: str | None = None
    import_paths: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0)

    @field_validator("racing", "estimation", mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        return SWITCHES[value] if isinstance(value, bool | str) and value in SWITCHES else value

    @field_validator("fitness", "report", "constraints", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value
