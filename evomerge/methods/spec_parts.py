"""Hyperparameters that several methods have."""

from __future__ import annotations

from evomerge.methods.base import Hyperparameter


def coefficient(low: float, high: float) -> Hyperparameter:
    """What multiplies each expert, searched within these limits."""
    return Hyperparameter(
        "coefficient", "expert", "float", 1.0, low, high, mergekit_name="weight", description="multiplier of the expert"
    )


def density(default: float) -> Hyperparameter:
    """The fraction that a trim keeps."""
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


def lambda_(low: float, high: float) -> Hyperparameter:
    """The scale of the result, searched within these limits."""
    return Hyperparameter(
        "lambda", "merge", "float", 1.0, low, high, mergekit_name="lambda", description="scale of the merged deltas"
    )


def normalize(default: bool, by: str) -> Hyperparameter:
    """Whether to divide, and by what."""
    return Hyperparameter(
        "normalize", "merge", "bool", default, mergekit_name="normalize", description=f"divide by {by}"
    )


ALL_COEFFICIENTS = "the sum of the coefficients"
AGREEING_COEFFICIENTS = "the sum of the coefficients of the experts that agree on the sign, element by element"


def structural_flag(name: str, default: bool, mergekit_name: str | None, description: str) -> Hyperparameter:
    """A truth value that needs a new ``prepare``."""
    return Hyperparameter(
        name, "merge", "bool", default, structural=True, mergekit_name=mergekit_name, description=description
    )


def number(
    name: str, default: float, low: float, high: float, description: str, mergekit_name: str | None = None
) -> Hyperparameter:
    """A number of the merge."""
    return Hyperparameter(
        name, "merge", "float", default, low, high, mergekit_name=mergekit_name, description=description
    )


GAMMA = Hyperparameter(
    "gamma",
    "expert",
    "float",
    0.01,
    0.0,
    0.1,
    mergekit_name="gamma",
    description="fraction of the largest entries that is dropped, in [0, 1)",
)

EPSILON = Hyperparameter(
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

RESCALE = Hyperparameter(
    "rescale",
    "merge",
    "choice",
    "inv_density",
    structural=True,
    choices=("inv_density", "l1", "none"),
    mergekit_name="rescale",
    description="make up for dropped entries by 1 / density, by keeping the L1 norm (mergekit's true), or not",
)
