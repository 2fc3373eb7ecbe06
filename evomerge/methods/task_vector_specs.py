"""Methods that thin out task vectors and add them up."""

from __future__ import annotations

from evomerge.methods.base import MethodSpec
from evomerge.methods.spec_parts import (
    AGREEING_COEFFICIENTS,
    ALL_COEFFICIENTS,
    GAMMA,
    RESCALE,
    coefficient,
    density,
    lambda_,
    normalize,
)

TASK_VECTOR_SPECS = (
    MethodSpec(
        "task_arithmetic",
        "Weighted sum of task vectors",
        (coefficient(-0.5, 1.5), normalize(False, ALL_COEFFICIENTS), lambda_(0.0, 2.0)),
        "evomerge.methods.task_arithmetic:TaskArithmetic",
        needs_base=True,
        paper="Editing models with task arithmetic (Ilharco 2022)",
        arxiv="2212.04089",
    ),
    MethodSpec(
        "ties",
        "Trim to the largest entries, elect signs, merge what agrees",
        (coefficient(0.0, 1.0), density(0.2), normalize(True, AGREEING_COEFFICIENTS), lambda_(0.3, 2.0)),
        "evomerge.methods.ties:Ties",
        needs_base=True,
        paper="TIES-Merging (Yadav 2023)",
        arxiv="2306.01708",
    ),
    MethodSpec(
        "dare_linear",
        "Randomly masked task vectors, summed",
        (coefficient(0.0, 1.5), density(0.5), normalize(False, ALL_COEFFICIENTS), RESCALE, lambda_(0.3, 2.0)),
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
            coefficient(0.0, 1.5),
            density(0.5),
            normalize(False, AGREEING_COEFFICIENTS),
            RESCALE,
            lambda_(0.3, 2.0),
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
            coefficient(0.0, 1.5),
            density(0.9),
            GAMMA,
            normalize(False, ALL_COEFFICIENTS),
            lambda_(0.1, 1.5),
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
            coefficient(0.0, 1.5),
            density(0.9),
            GAMMA,
            normalize(False, AGREEING_COEFFICIENTS),
            lambda_(0.1, 1.5),
        ),
        "evomerge.methods.breadcrumbs:BreadcrumbsTies",
        needs_base=True,
        paper="Model Breadcrumbs (Davari and Belilovsky 2023)",
        arxiv="2312.06795",
    ),
)
