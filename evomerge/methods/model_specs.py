"""Methods over whole models: averages and spherical means."""

from __future__ import annotations

from dataclasses import replace

from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.methods.spec_parts import ALL_COEFFICIENTS, coefficient, number, structural_flag

MODEL_SPECS = (
    MethodSpec(
        "linear",
        "Weighted average of models",
        (
            coefficient(0.0, 1.0),
            structural_flag("normalize", True, "normalize", f"divide by {ALL_COEFFICIENTS}"),
        ),
        "evomerge.methods.linear:Linear",
        needs_base=False,
        paper="Model soups (Wortsman 2022)",
        arxiv="2203.05482",
        cost="streaming",
        use="fine-tunes of one task with different data or settings; the first thing to try without a base",
    ),
    MethodSpec(
        "passthrough",
        "One model as it is, or scaled",
        (number("scale", 1.0, 0.0, 1.2, "multiplies the tensor", "scale"),),
        "evomerge.methods.passthrough:Passthrough",
        needs_base=False,
        max_experts=1,
        paper="MergeKit (Goddard 2024)",
        arxiv="2403.13257",
        cost="streaming",
        use="a single model in a place where a merge is expected, or damped with scale",
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
        cost="streaming",
        use="two models of equal standing, with t by depth and component",
    ),
    MethodSpec(
        "nuslerp",
        "Spherical interpolation of two experts, or of their task vectors",
        (
            coefficient(0.0, 1.0),
            structural_flag("flatten", True, "nuslerp_flatten", "one angle for the tensor, not one for each vector"),
            structural_flag("row_wise", False, "nuslerp_row_wise", "vectors along dimension 0, not along the last"),
        ),
        "evomerge.methods.nuslerp:Nuslerp",
        needs_base=False,
        min_experts=2,
        max_experts=2,
        paper="NuSLERP (Goddard 2024)",
        cost="streaming",
        use="two fine-tunes of one base: between their task vectors, where plain slerp is next to linear",
    ),
    MethodSpec(
        "multislerp",
        "Spherical mean of models, or of task vectors, in closed form",
        (
            coefficient(0.0, 1.0),
            Hyperparameter(
                "normalize",
                "merge",
                "bool",
                True,
                mergekit_name="normalize_weights",
                description=f"divide by {ALL_COEFFICIENTS}",
            ),
            number("eps", 1e-8, 1e-10, 1e-6, "length of the mean direction that counts as none", "eps"),
        ),
        "evomerge.methods.multislerp:Multislerp",
        needs_base=False,
        paper="Multi-SLERP (Goddard 2025)",
        cost="streaming",
        use="a mean of more than two models that keeps their length",
    ),
    MethodSpec(
        "karcher",
        "Karcher mean of models on the sphere",
        (
            replace(coefficient(0.0, 1.0), mergekit_name=None),
            Hyperparameter(
                "max_iter", "merge", "int", 10, 1, 50, mergekit_name="max_iter", description="iterations at most"
            ),
            number("tol", 1e-5, 1e-9, 1e-3, "step, in radians, that ends the iteration", "tol"),
        ),
        "evomerge.methods.karcher:Karcher",
        needs_base=False,
        paper="Karcher mean (Grove and Karcher 1973)",
        arxiv="2603.04972",
        cost="streaming",
        use="many models of equal standing, when the order of pairwise slerp should not matter",
    ),
    MethodSpec(
        "model_stock",
        "From the base towards the mean of the experts, as far as they agree",
        (
            structural_flag("filter_wise", False, "filter_wise", "one ratio for each vector along the last dimension"),
            structural_flag("clamp", True, None, "at least 0 for the cosine between task vectors"),
            number("t_scale", 1.0, 0.5, 1.5, "multiplies the ratio that the angles give"),
        ),
        "evomerge.methods.model_stock:ModelStock",
        needs_base=True,
        min_experts=2,
        paper="Model Stock (Jang 2024)",
        arxiv="2403.19522",
        cost="streaming",
        use="runs of one fine-tuning with different seeds; nothing to search",
    ),
    MethodSpec(
        "layer_swap",
        "The base with the bottom and top blocks of one expert",
        (
            number("bottom_share", 5 / 32, 0.0, 0.5, "fraction of the blocks, the first ones, that is the expert's"),
            number("top_share", 2 / 32, 0.0, 0.5, "fraction of the blocks, the last ones, that is the expert's"),
            Hyperparameter(
                "transition_bottom", "merge", "int", 1, 0, 3, description="mixed blocks above the first ones"
            ),
            Hyperparameter("transition_top", "merge", "int", 1, 0, 3, description="mixed blocks below the last ones"),
            number("seam_weight", 0.5, 0.0, 1.0, "of the expert in mixed blocks"),
            number("outside_weight", 0.5, 0.0, 1.0, "of the expert outside the blocks"),
        ),
        "evomerge.methods.layer_swap:LayerSwap",
        needs_base=True,
        max_experts=1,
        paper="Layer swapping (Bandarkar 2024)",
        arxiv="2410.01335",
        cost="streaming",
        use="a task expert that should speak another language: the outer blocks from a language expert",
    ),
)
