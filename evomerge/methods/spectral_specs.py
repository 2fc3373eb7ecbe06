"""Methods over the singular values of task vectors."""

from __future__ import annotations

from dataclasses import replace

from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.methods.spec_parts import ALL_COEFFICIENTS, coefficient, lambda_, normalize, number

_LAMBDA = replace(lambda_(0.0, 3.0), mergekit_name=None)
_COEFFICIENT = replace(coefficient(0.0, 2.0), mergekit_name=None)
_ISOTROPY = number("isotropy", 1.0, 0.0, 1.0, "0 keeps the singular values, 1 makes them equal")

SPECTRAL_SPECS = (
    MethodSpec(
        "tsv_m",
        "Largest singular directions of all task vectors, made orthogonal",
        (
            _COEFFICIENT,
            Hyperparameter(
                "rank_share",
                "expert",
                "float",
                1.0,
                0.1,
                1.0,
                structural=True,
                description="the expert's directions, in units of an equal share of the rank",
            ),
            _LAMBDA,
        ),
        "evomerge.methods.tsv_m:TsvM",
        needs_base=True,
        paper="Task singular vectors (Gargiulo 2024)",
        arxiv="2412.00081",
    ),
    MethodSpec(
        "iso_c",
        "Summed task vectors with equal singular values",
        (replace(_COEFFICIENT, structural=True), _ISOTROPY, _LAMBDA),
        "evomerge.methods.isotropic:IsoC",
        needs_base=True,
        paper="Isotropic merging (Marczak 2025)",
        arxiv="2502.04959",
    ),
    MethodSpec(
        "iso_cts",
        "Common and task-specific directions with equal singular values",
        (
            replace(_COEFFICIENT, structural=True),
            replace(
                number("common_share", 0.8, 0.0, 1.0, "fraction of the directions that the experts share"),
                structural=True,
            ),
            _ISOTROPY,
            _LAMBDA,
        ),
        "evomerge.methods.isotropic:IsoCts",
        needs_base=True,
        paper="Isotropic merging (Marczak 2025)",
        arxiv="2502.04959",
    ),
    MethodSpec(
        "star",
        "Task vectors without their small singular values, averaged",
        (
            _COEFFICIENT,
            replace(
                number("eta", 40.0, 5.0, 100.0, "percentage of the sum of singular values that is kept"),
                structural=True,
            ),
            replace(normalize(True, ALL_COEFFICIENTS), mergekit_name=None),
            replace(_LAMBDA, low=0.3, high=2.0),
        ),
        "evomerge.methods.star:Star",
        needs_base=True,
        paper="STAR (Lee 2025)",
        arxiv="2502.10339",
    ),
)
