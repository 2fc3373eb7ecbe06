"""Facts of mergekit 0.1's dialect that its own files leave unsaid: parameter names, defaults, what a method implies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.recipes.recipe import Scalar

# mergekit's name to the default of each method; None = required.
_WEIGHT: dict[str, Scalar | None] = {"weight": None}
_DELTA: dict[str, Scalar | None] = {**_WEIGHT, "lambda": 1.0, "normalize": False}
_DELLA: dict[str, Scalar | None] = {**_DELTA, "density": 1.0, "epsilon": 0.15, "rescale": True}


@dataclass(frozen=True)
class Dialect:
    """One method as mergekit has it.

    Attributes:
        defaults: mergekit's parameter names with their defaults; None = required.
        per_model: which of them mergekit reads beside a model; the others count only at slice or top level.
        implied: evomerge hyperparameters that mergekit does not name, with the value its code amounts to.
        base_is_first: mergekit's ``base_model`` is the first of the merged models (slerp).
        base_is_optional: with a ``base_model`` task vectors are merged, without one models.
    """

    defaults: Mapping[str, Scalar | None]
    per_model: tuple[str, ...] = ("weight", "density")
    implied: Mapping[str, Scalar] = field(default_factory=dict)
    base_is_first: bool = False
    base_is_optional: bool = False


DIALECT: dict[str, Dialect] = {
    "linear": Dialect({**_WEIGHT, "normalize": True}),
    "task_arithmetic": Dialect(_DELTA),
    "ties": Dialect(
        {**_DELTA, "density": 1.0, "normalize": True}, implied={"trim_scope": "tensor", "merge_func": "mean"}
    ),
    "dare_linear": Dialect({**_DELTA, "density": 1.0, "rescale": True}),
    "dare_ties": Dialect({**_DELTA, "density": 1.0, "rescale": True}),
    "della_linear": Dialect(_DELLA, per_model=("weight", "density", "epsilon")),
    "della": Dialect({**_DELLA, "normalize": True}, per_model=("weight", "density", "epsilon")),
    "breadcrumbs": Dialect({**_DELTA, "density": 1.0, "gamma": 0.01}, per_model=("weight", "density", "gamma")),
    "breadcrumbs_ties": Dialect({**_DELTA, "density": 1.0, "gamma": 0.01}, per_model=("weight", "density", "gamma")),
    "slerp": Dialect({"t": None}, per_model=(), base_is_first=True),
    "nuslerp": Dialect({**_WEIGHT, "nuslerp_flatten": True, "nuslerp_row_wise": False}, base_is_optional=True),
    "multislerp": Dialect({**_WEIGHT, "normalize_weights": True, "eps": 1e-8}, base_is_optional=True),
    "karcher": Dialect({"max_iter": 10, "tol": 1e-5}, per_model=(), implied={"coefficient": 1.0}),
    "model_stock": Dialect({"filter_wise": False}, per_model=(), implied={"clamp": False, "t_scale": 1.0}),
    "nearswap": Dialect({"t": None}, per_model=()),
    "sce": Dialect({"select_topk": 1.0}, per_model=(), implied={"lambda": 1.0}),
    "arcee_fusion": Dialect({}, per_model=(), implied={"iqr_factor": 1.5, "lambda": 1.0}),
    "passthrough": Dialect({"scale": 1.0}, per_model=("scale",)),
    "ram": Dialect({"epsilon": 1e-5}, per_model=(), implied={"lambda": 1.0}),
    "ramplus_tl": Dialect({"r": 0.1, "alpha": 0.2, "epsilon": 1e-5}, per_model=(), implied={"lambda": 1.0}),
}

# Parameters that mergekit reads for a method and that change nothing there.
WITHOUT_EFFECT = {"task_arithmetic": ("density", "rescale")}
# Parameters of mergekit that evomerge has only at their default: false.
ONLY_FALSE = {"ties": ("rescale",), "breadcrumbs": ("rescale",), "breadcrumbs_ties": ("rescale",)}

# In evomerge's own key: tokenizer_source only says whose files are copied, and no token changes its row.
UNCHANGED = "unchanged"

# Parameters that change no number of the result.
IGNORED = ("int8_mask",)


def by_mergekit_name(spec: MethodSpec) -> dict[str, Hyperparameter]:
    """The hyperparameters of a method that mergekit knows, under mergekit's names."""
    return {entry.mergekit_name: entry for entry in spec.hyperparameters if entry.mergekit_name is not None}


def from_mergekit(parameter: Hyperparameter, value: Scalar) -> Scalar:
    """A value in evomerge's terms: ``rescale: true`` is the L1 rule, numbers count as truth values."""
    if parameter.kind == "choice" and parameter.name == "rescale":
        return "l1" if value else "none"
    if parameter.kind == "bool" and isinstance(value, int | float):
        return bool(value)
    return value


def to_mergekit(parameter: Hyperparameter, value: Scalar) -> Scalar | None:
    """The value in mergekit's terms, None when mergekit cannot say it."""
    if parameter.kind == "choice" and parameter.name == "rescale":
        return {"l1": True, "none": False}.get(str(value))
    return value
