"""Methods that merge LoRA adapters by their factors."""

from __future__ import annotations

from evomerge.methods.base import Hyperparameter, MethodSpec

ADAPTER_SPECS = (
    MethodSpec(
        "evo_merging",
        "One adapter of many: thinned A factors, weighted sums of both factors",
        (
            Hyperparameter(
                "keep",
                "expert",
                "float",
                1.0,
                0.0,
                1.0,
                is_closed=True,
                description="fraction of the largest entries of the adapter's A that is kept, in [0, 1]",
            ),
            Hyperparameter("scale", "expert", "float", None, -1.5, 1.5, description="multiplies both A and B"),
        ),
        "evomerge.methods.evo_merging:EvoMerging",
        needs_base=True,
        takes="adapters",
        paper="Evo-Merging (2025)",
        arxiv="2509.12951",
        cost="ranking",
        use="many LoRA adapters of one rank, most of them of no use for the task",
    ),
)
