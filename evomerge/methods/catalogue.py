"""Every merge method, as torch-free specs. A new method is one file and one entry here."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import replace

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


def _structural(name: str, default: bool, mergekit_name: str | None, description: str) -> Hyperparameter:
    return Hyperparameter(
        name, "merge", "bool", default, structural=True, mergekit_name=mergekit_name, description=description
    )


def _number(
    name: str, default: float, low: float, high: float, description: str, mergekit_name: str | None = None
) -> Hyperparameter:
    return Hyperparameter(
        name, "merge", "float", default, low, high, mergekit_name=mergekit_name, description=description
    )


_GAMMA = Hyperparameter(
    "gamma",
    "expert",
    "float",
    0.01,
    0.0,
    0.1,
    mergekit_name="gamma",
    description="fraction of the largest entries that is dropped, in [0, 1)",
)

_EPSILON = Hyperparameter(
    "epsilon",
    "merge",
    "float",
    1e-5,
    1e-7,
    1e-3,
    structural=True,
    mergekit_name="epsilon",
    description="a weight counts as changed from this magnitude on",
)

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
            (
                _coefficient(0.0, 1.0),
                _structural("normalize", True, "normalize", f"divide by {_ALL_COEFFICIENTS}"),
            ),
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
        MethodSpec(
            "breadcrumbs",
            "Task vectors without their largest and smallest entries, summed",
            (
                _coefficient(0.0, 1.5),
                _density(0.9),
                _GAMMA,
                _normalize(False, _ALL_COEFFICIENTS),
                _lambda(0.1, 1.5),
            ),
            "evomerge.methods.breadcrumbs:Breadcrumbs",
            needs_base=True,
            paper="Model Breadcrumbs (Davari and Belilovsky 2023)",
            arxiv="2312.06795",
        ),
        MethodSpec(
            "breadcrumbs_ties",
            "Task vectors without their largest and smallest entries, merged with sign election",
            (
                _coefficient(0.0, 1.5),
                _density(0.9),
                _GAMMA,
                _normalize(False, _AGREEING_COEFFICIENTS),
                _lambda(0.1, 1.5),
            ),
            "evomerge.methods.breadcrumbs:BreadcrumbsTies",
            needs_base=True,
            paper="Model Breadcrumbs (Davari and Belilovsky 2023)",
            arxiv="2312.06795",
        ),
        MethodSpec(
            "nuslerp",
            "Spherical interpolation of two experts, or of their task vectors",
            (
                _coefficient(0.0, 1.0),
                _structural("flatten", True, "nuslerp_flatten", "one angle for the tensor, not one for each vector"),
                _structural("row_wise", False, "nuslerp_row_wise", "vectors along dimension 0, not along the last"),
            ),
            "evomerge.methods.nuslerp:Nuslerp",
            needs_base=False,
            min_experts=2,
            max_experts=2,
            paper="NuSLERP (Goddard 2024)",
        ),
        MethodSpec(
            "multislerp",
            "Spherical mean of models, or of task vectors, in closed form",
            (
                _coefficient(0.0, 1.0),
                Hyperparameter(
                    "normalize",
                    "merge",
                    "bool",
                    True,
                    mergekit_name="normalize_weights",
                    description=f"divide by {_ALL_COEFFICIENTS}",
                ),
                _number("eps", 1e-8, 1e-10, 1e-6, "length of the mean direction that counts as none", "eps"),
            ),
            "evomerge.methods.multislerp:Multislerp",
            needs_base=False,
            paper="Multi-SLERP (Goddard 2025)",
        ),
        MethodSpec(
            "karcher",
            "Karcher mean of models on the sphere",
            (
                replace(_coefficient(0.0, 1.0), mergekit_name=None),
                Hyperparameter(
                    "max_iter", "merge", "int", 10, 1, 50, mergekit_name="max_iter", description="iterations at most"
                ),
                _number("tol", 1e-5, 1e-9, 1e-3, "step, in radians, that ends the iteration", "tol"),
            ),
            "evomerge.methods.karcher:Karcher",
            needs_base=False,
            paper="Karcher mean (Grove and Karcher 1973)",
            arxiv="2603.04972",
        ),
        MethodSpec(
            "model_stock",
            "From the base towards the mean of the experts, as far as they agree",
            (
                _structural("filter_wise", False, "filter_wise", "one ratio for each vector along the last dimension"),
                _structural("clamp", True, None, "at least 0 for the cosine between task vectors"),
                _number("t_scale", 1.0, 0.5, 1.5, "multiplies the ratio that the angles give"),
            ),
            "evomerge.methods.model_stock:ModelStock",
            needs_base=True,
            min_experts=2,
            paper="Model Stock (Jang 2024)",
            arxiv="2403.19522",
        ),
        MethodSpec(
            "varm",
            "Task vectors weighted by their energy in each tensor",
            (_number("exponent", 1.0, 0.0, 3.0, "of the energy; 0 weighs all experts alike"), _lambda(0.3, 1.5)),
            "evomerge.methods.varm:Varm",
            needs_base=True,
            paper="FuseChat (Wan 2024)",
            arxiv="2402.16107",
        ),
        MethodSpec(
            "nearswap",
            "Step of bounded size from the base towards one expert",
            (
                Hyperparameter(
                    "t", "merge", "float", None, 1e-6, 1e-1, mergekit_name="t", description="largest change of a weight"
                ),
            ),
            "evomerge.methods.nearswap:Nearswap",
            needs_base=True,
            max_experts=1,
            paper="QuartetAnemoi (alchemonaut 2024)",
        ),
        MethodSpec(
            "magmax",
            "The largest change of each weight",
            (replace(_lambda(0.0, 1.5), default=0.5, mergekit_name=None),),
            "evomerge.methods.magmax:Magmax",
            needs_base=True,
            paper="MagMax (Marczak 2024)",
            arxiv="2407.06322",
        ),
        MethodSpec(
            "emr",
            "Elected signs with the largest agreeing magnitudes (unified vector)",
            (replace(_lambda(0.1, 1.2), mergekit_name=None),),
            "evomerge.methods.emr:Emr",
            needs_base=True,
            paper="EMR-Merging (Huang 2024)",
            arxiv="2405.17461",
        ),
        MethodSpec(
            "consensus",
            "Summed task vectors where enough experts care",
            (
                Hyperparameter(
                    "mask_threshold",
                    "expert",
                    "float",
                    0.4,
                    0.1,
                    1.0,
                    description="an expert cares where its change exceeds this times that of the others together",
                ),
                Hyperparameter(
                    "min_agreement", "merge", "int", 2, 0, 8, description="experts that must care; 0 = task arithmetic"
                ),
                replace(_lambda(0.1, 1.5), default=0.4, mergekit_name=None),
            ),
            "evomerge.methods.consensus:Consensus",
            needs_base=True,
            paper="Consensus merging, TALL masks (Wang 2024)",
            arxiv="2405.07813",
        ),
        MethodSpec(
            "ram",
            "Mean of overlapping changes, lone changes in full",
            (_EPSILON, replace(_lambda(0.3, 1.5), mergekit_name=None)),
            "evomerge.methods.ram:Ram",
            needs_base=True,
            paper="Reinforced agent merging (Yuan 2026)",
            arxiv="2601.13572",
        ),
        MethodSpec(
            "ramplus_tl",
            "RAM with lone changes enlarged, tensor by tensor",
            (
                _EPSILON,
                _number("r", 0.1, 0.0, 1.0, "strength of the enlargement", "r"),
                _number("alpha", 0.2, 0.0, 2.0, "limit of shared over lone changes", "alpha"),
                replace(_lambda(0.3, 1.5), mergekit_name=None),
            ),
            "evomerge.methods.ram:RamPlus",
            needs_base=True,
            paper="Reinforced agent merging (Yuan 2026)",
            arxiv="2601.13572",
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
