"""Methods that solve a small optimisation for every matrix."""

from __future__ import annotations

from dataclasses import replace

from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.methods.spec_parts import coefficient, lambda_, number

_LAMBDA = replace(lambda_(0.1, 1.5), mergekit_name=None)
_COEFFICIENT = replace(coefficient(0.0, 2.0), mergekit_name=None, structural=True)
_SOLVER = (
    Hyperparameter(
        "solver",
        "merge",
        "choice",
        "adam",
        structural=True,
        choices=("adam", "closed_form"),
        description="adam as published, or evomerge's closed form of the gradient flow",
    ),
    Hyperparameter("steps", "merge", "int", 300, 50, 1000, structural=True, description="of adam"),
    replace(number("learning_rate", 1e-5, 1e-6, 1e-4, "of adam"), structural=True),
    replace(number("time", 300.0, 1.0, 1e4, "how long the closed form follows the gradient"), structural=True),
    replace(
        number("directions_share", 1.0, 0.5, 1.0, "fraction of the directions that the closed form follows"),
        structural=True,
    ),
)

OPTIMISED_SPECS = (
    MethodSpec(
        "wudi",
        "Task vectors that disturb each other's inputs least",
        (
            _COEFFICIENT,
            *_SOLVER,
            Hyperparameter(
                "rest",
                "merge",
                "choice",
                "base",
                structural=True,
                choices=("base", "mean"),
                description="what tensors that are no linear maps get",
            ),
            replace(_LAMBDA, low=0.3),
        ),
        "evomerge.methods.wudi:Wudi",
        needs_base=True,
        paper="WUDI-Merging (Cheng 2025)",
        arxiv="2503.08099",
        cost="optimisation",
        use="experts of different tasks without data, when minutes per merge are fine",
    ),
    MethodSpec(
        "wudi2",
        "Task vectors that disturb each other's main directions least, around their mean",
        (
            _COEFFICIENT,
            replace(
                number("rank_share", 1.0, 0.1, 3.0, "directions of an expert, in units of an equal share of the rank"),
                structural=True,
            ),
            *_SOLVER,
            _LAMBDA,
        ),
        "evomerge.methods.wudi2:Wudi2",
        needs_base=True,
        paper="OptMerge, WUDI v2 (Wei 2025)",
        arxiv="2505.19892",
        cost="optimisation",
        use="the same for adapters and multimodal experts",
    ),
)
