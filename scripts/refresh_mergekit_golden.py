"""Write tests/golden/mergekit_methods.json: what mergekit makes of small fp32 tensors.

Needs a Python environment with mergekit, which pins another pydantic than evomerge. Run it as
``python scripts/refresh_mergekit_golden.py``. Only mergekit's public call signatures are used.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "mergekit_methods.json"

# Method, number of experts, evomerge's values. Random masks cannot agree, so DARE and DELLA are compared at density 1.
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("linear", 3, {"coefficient": [0.5, 0.2, 0.9], "normalize": True}),
    ("linear", 2, {"coefficient": [0.5, -0.2], "normalize": False}),
    ("slerp", 1, {"t": 0.3}),
    ("slerp", 1, {"t": 0.9}),
    ("task_arithmetic", 3, {"coefficient": [0.5, -0.3, 1.2], "normalize": False, "lambda": 0.8}),
    ("task_arithmetic", 2, {"coefficient": [0.5, 0.3], "normalize": True, "lambda": 1.0}),
    ("ties", 3, {"coefficient": [0.5, 0.7, 1.0], "density": [0.2, 0.5, 0.9], "normalize": True, "lambda": 1.0}),
    ("ties", 3, {"coefficient": [0.5, 0.7, 1.0], "density": [0.2, 0.5, 0.9], "normalize": False, "lambda": 1.3}),
    ("ties", 2, {"coefficient": [0.5, -0.7], "density": [0.33, 1.0], "normalize": True, "lambda": 0.6}),
    ("ties", 1, {"coefficient": [0.4], "density": [0.1], "normalize": True, "lambda": 1.0}),
    ("dare_linear", 2, {"coefficient": [0.5, 0.7], "density": [1.0, 1.0], "normalize": False, "lambda": 1.1}),
    ("dare_ties", 3, {"coefficient": [0.5, 0.7, 1.0], "density": [1.0] * 3, "normalize": True, "lambda": 1.0}),
    (
        "breadcrumbs",
        2,
        {"coefficient": [0.5, 0.7], "density": [0.5, 0.9], "gamma": [0.05, 0.1], "normalize": False, "lambda": 1.1},
    ),
    (
        "breadcrumbs_ties",
        3,
        {
            "coefficient": [0.5, 0.7, 0.9],
            "density": [0.5, 0.9, 0.2],
            "gamma": [0.05, 0.1, 0.02],
            "normalize": True,
            "lambda": 0.8,
        },
    ),
    ("della_linear", 2, {"coefficient": [0.5, 0.7], "density": [1.0] * 2, "normalize": False, "lambda": 1.1}),
    ("della", 3, {"coefficient": [0.5, 0.7, 1.0], "density": [1.0] * 3, "normalize": True, "lambda": 0.9}),
    ("sce", 3, {"select_topk": 1.0, "lambda": 1.0}),
    ("sce", 3, {"select_topk": 0.4, "lambda": 1.0}),
    ("sce", 2, {"select_topk": 0.7, "lambda": 1.0}),
    ("arcee_fusion", 1, {"iqr_factor": 1.5, "lambda": 1.0}),
    ("passthrough", 1, {"scale": 0.7}),
    ("nuslerp", 2, {"coefficient": [0.5, 0.9], "flatten": True, "row_wise": False}),
    ("nuslerp", 2, {"coefficient": [0.5, 0.9], "flatten": False, "row_wise": False}),
    ("nuslerp", 2, {"coefficient": [0.2, 0.9], "flatten": False, "row_wise": True}),
    ("multislerp", 3, {"coefficient": [0.5, 0.2, 0.9], "normalize": True, "eps": 1e-8}),
    ("multislerp", 2, {"coefficient": [0.5, 0.2], "normalize": False, "eps": 1e-8}),
    ("karcher", 3, {"coefficient": [1.0] * 3, "max_iter": 10, "tol": 1e-5}),
    ("model_stock", 2, {"filter_wise": False, "clamp": False, "t_scale": 1.0}),
    ("model_stock", 3, {"filter_wise": True, "clamp": False, "t_scale": 1.0}),
    ("nearswap", 1, {"t": 0.05}),
    ("ram", 3, {"epsilon": 0.1, "lambda": 1.0}),
    ("ramplus_tl", 3, {"epsilon": 0.1, "lambda": 1.0, "r": 0.1, "alpha": 0.2}),
]
# Which of the newer methods take the base as a model of its own kind; karcher, multislerp and passthrough have none.
WITH_BASE = ("nuslerp", "model_stock", "nearswap", "ram", "ramplus_tl", "sce", "arcee_fusion")
EVOMERGE_ONLY = ("lambda", "t_scale", "clamp", "iqr_factor")
NAMES = {"coefficient": "weight", "flatten": "nuslerp_flatten", "row_wise": "nuslerp_row_wise"}


def tensors(count: int) -> list[list[list[float]]]:
    """Base and experts ``(7, 9)``: sixteenths, exact in any float dtype, with different magnitudes inside a delta."""
    base = [[((31 * row + 17 * column) % 61 - 30) / 16 for column in range(9)] for row in range(7)]
    experts = []
    for expert in range(count):
        # 67 is coprime to the 63 elements' indices, so no two magnitudes of one delta are equal
        deltas = [((29 + 8 * expert) * (index + 5) % 67 + 1) / 256 for index in range(63)]
        signs = [1 if (index * (expert + 3)) % 7 < 4 else -1 for index in range(63)]
        flat = [base[index // 9][index % 9] + signs[index] * deltas[index] for index in range(63)]
        experts.append([flat[9 * row : 9 * row + 9] for row in range(7)])
    return [base, *experts]


def mergekit_result(method: str, count: int, values: dict[str, Any]) -> list[list[float]]:
    """The tensor mergekit makes."""
    import torch
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import TensorBatch, TensorEntry, TensorGroup
    from mergekit.merge_methods.slerp import slerp

    base, *experts = (torch.tensor(tensor) for tensor in tensors(count))
    if method in WITH_BASE or method in ("multislerp", "karcher", "passthrough"):
        return merged_by_name(method, base, experts, values)
    if method == "slerp":
        merged = slerp(torch.tensor([values["t"]]), base[None], experts[0][None])[0]
    elif method == "linear":
        weight = torch.tensor([values["coefficient"]])
        batch = TensorBatch([expert[None] for expert in experts])
        merged = registry.get("linear").implementation(batch, weight=weight, normalize=values["normalize"])[0]
    else:
        entries = [TensorEntry(index, expert) for index, expert in enumerate(experts)]
        per_expert = {"weight": values["coefficient"], "density": values.get("density", [1.0] * count)}
        if method.startswith("della"):
            per_expert["epsilon"] = [0.15] * count
        if "gamma" in values:
            per_expert["gamma"] = values["gamma"]
        merged = registry.get(method).merge_group(
            TensorGroup((TensorEntry("base", base, is_base=True), *entries)),
            normalize=values["normalize"],
            rescale=method.startswith(("dare", "della")),
            int8_mask=False,
            **{"lambda": values["lambda"]},
            **{name: dict(enumerate(column)) for name, column in per_expert.items()},
        )
    return [[float(value) for value in row] for row in merged]


def merged_by_name(method: str, base: Any, experts: list[Any], values: dict[str, Any]) -> list[list[float]]:
    """The tensor of a method that needs no more than its parameters by mergekit's names."""
    from mergekit.merge_methods.api import merge_tensors

    with_base = method in WITH_BASE
    names = {**NAMES, "normalize": "normalize_weights"} if method == "multislerp" else NAMES
    parameters = {names.get(name, name): value for name, value in values.items() if name not in EVOMERGE_ONLY}
    if method == "karcher":
        del parameters["weight"]
    merged = merge_tensors(
        [base, *experts] if with_base else experts, method, parameters=parameters, base_index=0 if with_base else None
    )
    return [[float(value) for value in row] for row in merged]


def main() -> None:
    cases = [
        {"method": method, "count": count, "values": values, "merged": mergekit_result(method, count, values)}
        for method, count, values in CASES
    ]
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"mergekit": version("mergekit"), "cases": cases}, indent=None) + "\n")
    print(f"{len(cases)} cases of mergekit {version('mergekit')} in {GOLDEN}")


if __name__ == "__main__":
    main()
