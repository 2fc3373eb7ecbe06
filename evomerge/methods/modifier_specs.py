"""Modifiers: they change one task vector, that of a model before a merge, or that of a merge."""

from __future__ import annotations

from dataclasses import replace

from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.methods.spec_parts import number

_MULTIPLIER = number("multiplier", 1.0, 0.5, 1.5, "of the changes' common size")

MODIFIER_SPECS = (
    MethodSpec(
        "lines",
        "One task vector scaled by depth",
        (
            number("alpha", 1.0, 0.0, 1.0, "scale in the first block and outside the blocks"),
            number("beta", 0.0, 0.0, 1.5, "what the last block gets beyond alpha"),
        ),
        "evomerge.methods.lines:Lines",
        needs_base=True,
        max_experts=1,
        paper="LiNeS (Wang 2024)",
        arxiv="2410.17146",
        cost="streaming",
        use="after any merge, to keep early blocks near the base",
    ),
    MethodSpec(
        "bitdelta",
        "Signs of one task vector, at its mean size",
        (
            Hyperparameter(
                "modules",
                "merge",
                "choice",
                "both",
                structural=True,
                choices=("attention", "mlp", "both"),
                description="whose linear maps; everything else keeps the expert's values",
            ),
            _MULTIPLIER,
        ),
        "evomerge.methods.bitdelta:Bitdelta",
        needs_base=True,
        max_experts=1,
        paper="BitDelta (Liu 2024)",
        arxiv="2402.10193",
        cost="streaming",
        use="before a merge, to see how much an expert's signs alone carry",
    ),
    MethodSpec(
        "tswitch",
        "Signs of the largest changes of one task vector, at their root mean square",
        (
            replace(
                number("drop", 0.5, 0.1, 0.9, "fraction of the changes of each sign that is dropped, in [0, 1)"),
                structural=True,
            ),
            _MULTIPLIER,
        ),
        "evomerge.methods.tswitch:Tswitch",
        needs_base=True,
        max_experts=1,
        paper="T-Switch (Qi 2024)",
        arxiv="2412.00054",
        cost="ranking",
        use="before a merge, to thin out an expert and level what is left",
    ),
    MethodSpec(
        "svd_mutation",
        "Singular values of one task vector times random numbers",
        (
            Hyperparameter(
                "draw",
                "merge",
                "int",
                1,
                0,
                1_000_000,
                description="which random numbers, a whole number; 0 = none, the expert stays as it is",
            ),
            number("w_min", 0.0, 0.0, 1.0, "smallest factor of a singular value"),
            number("w_max", 0.3, 0.0, 1.0, "largest factor of a singular value"),
        ),
        "evomerge.methods.svd_mutation:SvdMutation",
        needs_base=True,
        max_experts=1,
        stochastic=True,
        paper="CycleQD (Kuroki 2025)",
        arxiv="2410.14735",
        cost="singular values",
        use="after a merge in a search with cycleqd, its `draw` searched",
    ),
    MethodSpec(
        "svc",
        "A merged model, the first, with singular values calibrated by the experts it was made of, the others",
        (number("alpha", 1.0, 0.5, 2.0, "the least that an expert counts in a direction, above 0"),),
        "evomerge.methods.svc:Svc",
        needs_base=True,
        min_experts=2,
        ordered=True,
        paper="Singular value calibration, SVC (Li 2026)",
        arxiv="2602.05536",
        cost="singular values",
        use="after a merge that added up what experts share",
    ),
)
