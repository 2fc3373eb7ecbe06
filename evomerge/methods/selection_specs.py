"""Methods that choose or weigh changes by what they find in them."""

from __future__ import annotations

from dataclasses import replace

from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.methods.spec_parts import EPSILON, density, lambda_, number

_MASK_THRESHOLD = Hyperparameter(
    "mask_threshold",
    "expert",
    "float",
    0.4,
    0.1,
    1.0,
    description="an expert cares where its change exceeds this times that of the others together",
)
_MIN_AGREEMENT = Hyperparameter(
    "min_agreement", "merge", "int", 2, 0, 8, description="experts that must care; 0 = task arithmetic"
)

SELECTION_SPECS = (
    MethodSpec(
        "varm",
        "Task vectors weighted by their energy in each tensor",
        (number("exponent", 1.0, 0.0, 3.0, "of the energy; 0 weighs all experts alike"), lambda_(0.3, 1.5)),
        "evomerge.methods.varm:Varm",
        needs_base=True,
        paper="FuseChat (Wan 2024)",
        arxiv="2402.16107",
        cost="streaming",
        use="experts that changed different tensors, without a coefficient to search",
    ),
    MethodSpec(
        "sce",
        "Select what differs most between experts, weigh by energy, erase minority signs",
        (
            Hyperparameter(
                "select_topk",
                "merge",
                "float",
                1.0,
                0.05,
                1.0,
                structural=True,
                mergekit_name="select_topk",
                description="fraction of the elements on which experts differ that is merged, in (0, 1]",
            ),
            replace(lambda_(0.3, 1.5), mergekit_name=None),
        ),
        "evomerge.methods.sce:Sce",
        needs_base=True,
        paper="FuseChat (Wan 2024)",
        arxiv="2408.07990",
        cost="ranking",
        use="models distilled from different teachers on one base (FuseChat)",
    ),
    MethodSpec(
        "arcee_fusion",
        "Changes of one expert that stand out",
        (
            number("iqr_factor", 1.5, 0.0, 5.0, "how many interquartile ranges above the median a change must be"),
            replace(lambda_(0.3, 1.5), mergekit_name=None),
        ),
        "evomerge.methods.arcee_fusion:ArceeFusion",
        needs_base=True,
        max_experts=1,
        paper="Arcee Fusion (Arcee 2025)",
        cost="ranking",
        use="one expert of which only the outstanding changes are wanted",
    ),
    MethodSpec(
        "delta_guided",
        "Task vectors weighted by their size, in each tensor and element by element",
        (
            number("tensor_exponent", 1.0, 0.0, 3.0, "of the norms of a tensor's task vectors; 0 weighs all alike"),
            number("element_exponent", 1.0, 0.0, 3.0, "of the magnitudes of an element's changes; 0 weighs all alike"),
            number("element_share", 0.5, 0.0, 1.0, "1 weighs by elements only, 0 by tensors only"),
            replace(lambda_(0.3, 1.5), mergekit_name=None),
        ),
        "evomerge.methods.delta_guided:DeltaGuided",
        needs_base=True,
        paper="own, after CoDiEmb (2025)",
        arxiv="2508.11442",
        cost="streaming",
        use="a scale between varm and choosing element by element, with two exponents to search",
    ),
    MethodSpec(
        "metric_weighted",
        "Average of models by their losses",
        (
            Hyperparameter("loss", "expert", "float", None, 0.1, 10.0, description="of the expert, above 0"),
            number("exponent", 1.0, 0.0, 10.0, "of 1 / loss; 0 weighs all experts alike"),
            replace(lambda_(0.3, 1.5), mergekit_name=None),
        ),
        "evomerge.methods.metric_weighted:MetricWeighted",
        needs_base=True,
        paper="own, after MWA (2025)",
        arxiv="2504.18580",
        cost="streaming",
        use="checkpoints of one run, or experts, whose losses are known",
    ),
    MethodSpec(
        "widen",
        "Task vectors weighted by how far they move length and direction of each weight vector",
        (
            number("ratio", 1.0, 0.5, 2.0, "significance above this times the expert's mean gets the calibrated score"),
            number("calibration", 1.0, 0.3, 1.5, "that score"),
            replace(lambda_(0.3, 1.5), mergekit_name=None),
        ),
        "evomerge.methods.widen:Widen",
        needs_base=True,
        paper="WIDEN (Yu 2024)",
        arxiv="2408.03092",
        cost="ranking",
        use="an instruct model with a model that was trained on, which moved far from their base",
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
        cost="streaming",
        use="a careful step from a good model towards another",
    ),
    MethodSpec(
        "magmax",
        "The largest change of each weight",
        (replace(lambda_(0.0, 1.5), default=0.5, mergekit_name=None),),
        "evomerge.methods.magmax:Magmax",
        needs_base=True,
        paper="MagMax (Marczak 2024)",
        arxiv="2407.06322",
        cost="streaming",
        use="experts of tasks learnt one after the other",
    ),
    MethodSpec(
        "emr",
        "Elected signs with the largest agreeing magnitudes (unified vector)",
        (replace(lambda_(0.1, 1.2), mergekit_name=None),),
        "evomerge.methods.emr:Emr",
        needs_base=True,
        paper="EMR-Merging (Huang 2024)",
        arxiv="2405.17461",
        cost="streaming",
        use="many experts in one vector; search lambda below 1",
    ),
    MethodSpec(
        "consensus",
        "Summed task vectors where enough experts care",
        (
            _MASK_THRESHOLD,
            _MIN_AGREEMENT,
            replace(lambda_(0.1, 1.5), default=0.4, mergekit_name=None),
        ),
        "evomerge.methods.consensus:Consensus",
        needs_base=True,
        paper="Consensus merging, TALL masks (Wang 2024)",
        arxiv="2405.07813",
        cost="streaming",
        use="five experts or more, to drop what only one of them wants",
    ),
    MethodSpec(
        "consensus_ties",
        "Elected sum of trimmed task vectors where enough experts care",
        (
            replace(density(0.2), mergekit_name=None),
            _MASK_THRESHOLD,
            _MIN_AGREEMENT,
            replace(lambda_(0.1, 1.5), default=0.4, mergekit_name=None),
        ),
        "evomerge.methods.consensus_ties:ConsensusTies",
        needs_base=True,
        paper="Consensus merging, TALL masks (Wang 2024)",
        arxiv="2405.07813",
        cost="ranking",
        use="the same on top of an elected sum",
    ),
    MethodSpec(
        "ram",
        "Mean of overlapping changes, lone changes in full",
        (EPSILON, replace(lambda_(0.3, 1.5), mergekit_name=None)),
        "evomerge.methods.ram:Ram",
        needs_base=True,
        paper="Reinforced agent merging (Yuan 2026)",
        arxiv="2601.13572",
        cost="streaming",
        use="models of reinforcement learning, whose changes are few and far between",
    ),
    MethodSpec(
        "ramplus_tl",
        "RAM with lone changes enlarged, tensor by tensor",
        (
            EPSILON,
            number("r", 0.1, 0.0, 1.0, "strength of the enlargement", "r"),
            number("alpha", 0.2, 0.0, 2.0, "limit of shared over lone changes", "alpha"),
            replace(lambda_(0.3, 1.5), mergekit_name=None),
        ),
        "evomerge.methods.ram:RamPlusTl",
        needs_base=True,
        paper="Reinforced agent merging (Yuan 2026)",
        arxiv="2601.13572",
        cost="streaming",
        use="as ram, when lone changes fade; as mergekit has it",
    ),
)
