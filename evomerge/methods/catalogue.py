"""Every merge method, as torch-free specs. A new method is one file and one entry here."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from evomerge.errors import UserError, did_you_mean
from evomerge.methods.base import Hyperparameter, MergeMethod, MethodSpec


def _coefficient(low: float, high: float) -> Hyperparameter:
    return Hyperparameter(
        "coefficient", "expert", "float", 1.0, low, high, mergekit_name="weight", description="multiplier of the expert"
    )


def _density(default: float) -> Hyperparameter:
    return Hyperparameter(
        "density",
        "expert",
        "float",
        default,
        0.05,
        1.0,
        mergekit_name="density",
        description="fraction of the task vector's entries that are kept, in (0, 1]",
    )


def _lambda(low: float, high: float) -> Hyperparameter:
    return Hyperparameter(
        "lambda", "merge", "float", 1.0, low, high, mergekit_name="lambda", description="scale of the merged deltas"
    )


def _normalize(default: bool, by: str) -> Hyperparameter:
    return Hyperparameter(
        "normalize", "merge", "bool", default, mergekit_name="normalize", description=f"divide by {by}"
    )


_ALL_COEFFICIENTS = "the sum of the coefficients"
_AGREEING_COEFFICIENTS = "the sum of the coefficients of the experts that agree on the sign, element by element"

_RESCALE = Hyperparameter(
    "rescale",
    "merge",
    "choice",
    "inv_density",
    structural=True,
    choices=("inv_density", "l1", "none"),
    mergekit_name="rescale",
    description="make up for dropped entries by 1 / density, by keeping the L1 norm (mergekit's true), or not",
)


def _collect(specs: Iterable[MethodSpec]) -> dict[str, MethodSpec]:
    collected: dict[str, MethodSpec] = {}
    for spec in specs:
        if spec.name in collected:
            raise ValueError(f"two methods are called {spec.name!r}: {spec.target}, {collected[spec.name].target}")
        collected[spec.name] = spec
    return collected


SPECS: dict[str, MethodSpec] = _collect(
    (
        MethodSpec(
            "linear",
            "Weighted average of models",
            (_coefficient(0.0, 1.0), _normalize(True, _ALL_COEFFICIENTS)),
            "evomerge.methods.linear:Linear",
            needs_base=False,
            paper="Model soups (Wortsman 2022)",
            arxiv="2203.05482",
        ),
        MethodSpec(
            "task_arithmetic",
            "Weighted sum of task vectors",
            (_coefficient(-0.5, 1.5), _normalize(False, _ALL_COEFFICIENTS), _lambda(0.0, 2.0)),
            "evomerge.methods.task_arithmetic:TaskArithmetic",
            needs_base=True,
            paper="Editing models with task arithmetic (Ilharco 2022)",
            arxiv="2212.04089",
        ),
        MethodSpec(
            "slerp",
            "Spherical interpolation of two models: base and one expert, or two experts without a base",
            (
                Hyperparameter(
                    "t", "merge", "float", None, mergekit_name="t", description="0 is the first model, 1 the second"
                ),
            ),
            "evomerge.methods.slerp:Slerp",
            needs_base=False,
            max_experts=2,
            paper="Animating rotation with quaternion curves (Shoemake 1985)",
        ),
        MethodSpec(
            "ties",
            "Trim to the largest entries, elect signs, merge what agrees",
            (_coefficient(0.0, 1.0), _density(0.2), _normalize(True, _AGREEING_COEFFICIENTS), _lambda(0.3, 2.0)),
            "evomerge.methods.ties:Ties",
            needs_base=True,
            paper="TIES-Merging (Yadav 2023)",
            arxiv="2306.01708",
        ),
        MethodSpec(
            "dare_linear",
            "Randomly masked task vectors, summed",
            (_coefficient(0.0, 1.5), _density(0.5), _normalize(False, _ALL_COEFFICIENTS), _RESCALE, _lambda(0.3, 2.0)),
            "evomerge.methods.dare_linear:DareLinear",
            needs_base=True,
            stochastic=True,
            paper="Language models are super Mario (Yu 2023)",
            arxiv="2311.03099",
        ),
        MethodSpec(
            "dare_ties",
            "Randomly masked task vectors, merged with sign election",
            (
                _coefficient(0.0, 1.5),
                _density(0.5),
                _normalize(False, _AGREEING_COEFFICIENTS),
                _RESCALE,
                _lambda(0.3, 2.0),
            ),
            "evomerge.methods.dare_ties:DareTies",
            needs_base=True,
            stochastic=True,
            paper="Language models are super Mario (Yu 2023)",
            arxiv="2311.03099",
        ),
    )
)


def get_spec(name: str) -> MethodSpec:
    """The spec of a merge method.

    Raises:
        UserError: there is no such method.
    """
    if name not in SPECS:
        raise UserError(f"no merge method is called {name!r}. {did_you_mean(name, SPECS)}")
    return SPECS[name]


def load_method(name: str) -> MergeMethod:
    """The method itself; imports torch.

    Raises:
        UserError: there is no such method.
    """
    module_name, class_name = get_spec(name).target.split(":")
    method = getattr(importlib.import_module(module_name), class_name)()
    if not isinstance(method, MergeMethod):
        raise TypeError(f"{module_name}:{class_name} is not a MergeMethod")
    return method
