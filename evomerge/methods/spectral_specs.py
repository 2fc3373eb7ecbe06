"""Methods over the singular values of task vectors."""

from __future__ import annotations

from dataclasses import replace

from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.methods.spec_parts import ALL_COEFFICIENTS, coefficient, lambda_, normalize, number, structural_flag

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
        cost="singular values",
        use="full fine-tunes of many tasks, when memory and time for singular values are there",
    ),
    MethodSpec(
        "iso_c",
        "Summed task vectors with equal singular values",
        (replace(_COEFFICIENT, structural=True), _ISOTROPY, _LAMBDA),
        "evomerge.methods.isotropic:IsoC",
        needs_base=True,
        paper="Isotropic merging (Marczak 2025)",
        arxiv="2502.04959",
        cost="singular values",
        use="many experts whose sum is ruled by few directions",
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
        cost="singular values",
        use="the same when experts also have directions of their own",
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
        cost="singular values",
        use="noisy task vectors; also on each expert before another method",
    ),
    MethodSpec(
        "dc_merge",
        "Task vectors merged with sign election, in directions that cover all of them",
        (
            replace(
                number(
                    "keep", 1e-3, 1e-4, 1e-1, "fraction of the entries in common directions that is kept, in (0, 1]"
                ),
                structural=True,
            ),
            Hyperparameter(
                "smoothing",
                "merge",
                "choice",
                "none",
                structural=True,
                choices=("none", "avg", "linear"),
                description="how a task vector's singular values are made more alike",
            ),
            replace(number("rho", 5.0, 1.0, 20.0, "largest ratio of linearly smoothed values"), structural=True),
            structural_flag("block_mask", True, None, "only blocks on the diagonal, one for each expert"),
            _LAMBDA,
        ),
        "evomerge.methods.dc_merge:DcMerge",
        needs_base=True,
        paper="DC-Merge (Zhang 2026)",
        arxiv="2603.06242",
        cost="singular values",
        use="many experts that should neither overlap nor lose their own directions",
    ),
    *(
        MethodSpec(
            name,
            f"Task vectors side by side in common {vectors} directions, made equally long, merged with sign election",
            (
                replace(_COEFFICIENT, low=0.2),
                replace(
                    number("drop", 0.8, 0.05, 0.95, "fraction of the directions' entries that is dropped, in [0, 1)"),
                    structural=True,
                ),
                _LAMBDA,
            ),
            f"evomerge.methods.drm:{target}",
            needs_base=True,
            paper="Decom-Renorm-Merge (Chaichana 2025)",
            arxiv="2505.23117",
            cost="singular values",
            use=f"experts whose changes are alike in what they {verb}, of different lengths",
        )
        for name, vectors, verb, target in (
            ("drm_h", "output", "write", "DrmHorizontal"),
            ("drm_v", "input", "read", "DrmVertical"),
        )
    ),
    MethodSpec(
        "do_merging",
        "Lengths and directions of columns averaged apart (after summaries of the paper, no official code)",
        (
            Hyperparameter(
                "steps",
                "merge",
                "int",
                0,
                0,
                300,
                structural=True,
                description="of making factors orthogonal; 0 = none",
            ),
            replace(
                number("gamma", 1.0, 1e-2, 1e2, "what a change of the factors costs in these steps"), structural=True
            ),
            Hyperparameter("rank", "merge", "int", 16, 1, 64, structural=True, description="of these factors"),
            replace(_LAMBDA, low=0.3),
        ),
        "evomerge.methods.do_merging:DoMerging",
        needs_base=True,
        paper="DO-Merging (Zheng 2025), as far as published without code",
        arxiv="2505.15875",
        cost="singular values",
        use="adapters of very different magnitude",
    ),
)
