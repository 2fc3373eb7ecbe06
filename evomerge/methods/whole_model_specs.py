"""Methods that survey the whole model before they merge a tensor of it."""

from __future__ import annotations

from dataclasses import replace

from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.methods.spec_parts import AGREEING_COEFFICIENTS, EPSILON, coefficient, density, lambda_, normalize, number

_LAMBDA = replace(lambda_(0.3, 2.0), mergekit_name=None)
_COEFFICIENT = replace(coefficient(0.0, 1.5), mergekit_name=None)
_DENSITY = replace(density(0.2), mergekit_name=None)
_NORMALIZE = replace(normalize(True, AGREEING_COEFFICIENTS), mergekit_name=None)


def _count(name: str, default: int, low: int, high: int, description: str) -> Hyperparameter:
    return Hyperparameter(name, "merge", "int", default, low, high, structural=True, description=description)


WHOLE_MODEL_SPECS = (
    MethodSpec(
        "metagpt",
        "Task vectors weighted by their energy in the whole model",
        (number("exponent", 2.0, -1.0, 3.0, "of the length; 0 weighs all experts alike"), _LAMBDA),
        "evomerge.methods.metagpt:MetaGpt",
        needs_base=True,
        paper="MetaGPT (Zhou 2024)",
        arxiv="2406.11385",
        cost="streaming",
        use="coefficients for task arithmetic without a search, or where a search should start",
    ),
    MethodSpec(
        "pcb",
        "Entries weighted by their importance within and between task vectors",
        (
            replace(_COEFFICIENT, low=0.8, high=1.3),
            number("ratio", 0.1, 0.01, 0.5, "fraction of the entries that is kept, in [0, 1]"),
            Hyperparameter(
                "variant",
                "merge",
                "choice",
                "scaled",
                structural=True,
                choices=("scaled", "raw"),
                description="competition of magnitudes scaled to [0, 1], or of the task vectors as they are",
            ),
            _LAMBDA,
        ),
        "evomerge.methods.pcb:Pcb",
        needs_base=True,
        paper="PCB-Merging (Du 2024)",
        arxiv="2410.02396",
        cost="streaming",
        use="contradicting experts; published with an evolution strategy over its coefficients",
    ),
    MethodSpec(
        "ramplus",
        "Mean of overlapping changes, lone changes boosted by each expert's overlap in the whole model",
        (
            replace(EPSILON, mergekit_name=None),
            number("r", 0.2, 0.0, 1.0, "largest boost per unit of the overlap"),
            number("alpha", 1.0, 0.0, 2.0, "overlap beyond this counts no more"),
            _LAMBDA,
        ),
        "evomerge.methods.ram:RamPlus",
        needs_base=True,
        paper="RAM+ (Yuan 2026)",
        arxiv="2601.13572",
        cost="streaming",
        use="as ram, when lone changes fade; as the authors have it",
    ),
    MethodSpec(
        "knots_ties",
        "TIES in a basis that all experts share",
        (_COEFFICIENT, _DENSITY, _NORMALIZE, replace(_LAMBDA, low=0.2, high=1.5)),
        "evomerge.methods.knots:KnotsTies",
        needs_base=True,
        paper="KnOTS (Stoica 2024)",
        arxiv="2410.19735",
        cost="singular values",
        use="LoRA experts, whose changes are not aligned entry by entry",
    ),
    MethodSpec(
        "knots_dare_ties",
        "DARE with TIES in a basis that all experts share",
        (_COEFFICIENT, replace(_DENSITY, default=0.9), _NORMALIZE, replace(_LAMBDA, low=0.2, high=1.5)),
        "evomerge.methods.knots:KnotsDareTies",
        needs_base=True,
        stochastic=True,
        paper="KnOTS (Stoica 2024)",
        arxiv="2410.19735",
        cost="singular values",
        use="the same with random masks",
    ),
    MethodSpec(
        "opcm",
        "Experts added one after the other, each without what is already spanned",
        (
            replace(
                number("alpha", 0.5, 0.0, 1.0, "share of the sum of singular values whose directions are protected"),
                structural=True,
            ),
            _LAMBDA,
        ),
        "evomerge.methods.opcm:Opcm",
        needs_base=True,
        ordered=True,
        paper="OPCM (Tang 2025)",
        arxiv="2501.09522",
        cost="singular values",
        use="experts that arrive one after the other",
    ),
    MethodSpec(
        "doge_ta",
        "Task arithmetic with a shared correction by projected gradient descent",
        (
            replace(number("eta", 0.07, 0.01, 0.3, "length that every task vector of a matrix gets"), structural=True),
            number("keep", 0.3, 0.1, 1.0, "fraction of each task vector's largest entries that is kept, in (0, 1]"),
            _count("subspace", 6, 2, 12, "one in so many directions is protected"),
            _count("steps", 400, 0, 1000, "of gradient descent"),
            replace(number("learning_rate", 1e-4, 1e-5, 1e-3, "of gradient descent"), structural=True),
            _LAMBDA,
        ),
        "evomerge.methods.doge_ta:DogeTa",
        needs_base=True,
        paper="DOGE (Wei 2025)",
        arxiv="2501.01230",
        cost="optimisation",
        use="many full fine-tunes without data, when minutes per merge are fine",
    ),
)
