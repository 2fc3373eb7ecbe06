"""Models and values on which every merge method is tested; a new method with other needs says so here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge.methods.base import MethodSpec, TensorContext, Value
from evomerge.methods.catalogue import load_method

SHAPE = (23, 31)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

BASE_IS_OPTIONAL = ("nuslerp", "multislerp")


class Recorder(Mapping[str, Any]):
    """A mapping that remembers which keys were read."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self.entries, self.read = entries, set[str]()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return self.entries[key]

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("a method reads its hyperparameters by name")

    def __len__(self) -> int:
        return len(self.entries)


def arrangements(spec: MethodSpec) -> list[tuple[bool, int]]:
    """(with a base, number of experts) the method accepts."""
    if spec.name == "slerp":
        return [(True, 1), (False, 2)]
    bases = (False, True) if spec.name in BASE_IS_OPTIONAL else (spec.needs_base,)
    return [(base, count) for base in bases for count in range(spec.min_experts, most(spec) + 1)]


def most(spec: MethodSpec) -> int:
    """As many experts as are tested."""
    return spec.max_experts or 3


def models(
    spec: MethodSpec,
    arrangement: tuple[bool, int],
    dtype: torch.dtype = torch.float32,
    shape: Any = SHAPE,
    seed: int = 0,
) -> tuple[Tensor | None, list[Tensor]]:
    """A base and experts around it; a third of each task vector is 0, some entries differ only in sign."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    experts = []
    for _ in range(arrangement[1]):
        delta = (torch.randn(shape, generator=generator) * 8).round() / 64
        experts.append((base + delta * (torch.rand(shape, generator=generator) < 0.67)).to(dtype))
    return base.to(dtype) if arrangement[0] else None, experts


def split_values(spec: MethodSpec, count: int, **given: Value | Sequence[float]) -> tuple[dict, dict]:
    """(structural, others): the given values, else middling ones that work for the method."""
    middling = {
        "coefficient": [0.4 + 0.2 * i for i in range(count)],
        "density": [0.6 - 0.1 * i for i in range(count)],
        "t": 0.3,
        "min_agreement": 1,
        "clamp": False,
        "loss": [0.5 + 0.25 * i for i in range(count)],
    }
    if spec.name == "doge_ta":
        middling |= {"steps": 20, "learning_rate": 1e-3, "eta": 1.0}
    structural, cheap = {}, {}
    for parameter in spec.hyperparameters:
        value = given.get(parameter.name, middling.get(parameter.name, parameter.default))
        if parameter.per == "expert" and not isinstance(value, Sequence):
            value = [value] * count
        (structural if parameter.structural else cheap)[parameter.name] = value
    return structural, cheap


def others(spec: MethodSpec, count: int) -> dict[str, Any]:
    """Other values than those of split_values for everything that is not structural."""
    found: dict[str, Any] = {}
    for parameter in spec.hyperparameters:
        if parameter.structural:
            continue
        value: Any = {"bool": not parameter.default, "int": 3}.get(parameter.kind, 0.1 * parameter.low + 0.9)
        if parameter.kind == "choice":
            value = parameter.choices[-1]
        found[parameter.name] = [value] * count if parameter.per == "expert" else value
    return found


def context(count: int, seed: int = 0, **others: Any) -> TensorContext:
    place = {"component": "mlp", "block": 5, "num_blocks": 32}  # in a seam of layer_swap
    keys = tuple(f"expert{i}" for i in range(count))
    return TensorContext("model.layers.5.mlp.up_proj.weight", seed, keys, **{**place, **others})


def merge(
    spec: MethodSpec,
    base: Tensor | None,
    experts: Sequence[Tensor],
    *,
    ctx: TensorContext | None = None,
    out_dtype: torch.dtype | None = None,
    **given: Any,
) -> Tensor:
    method = load_method(spec.name)
    structural, values = split_values(spec, len(experts), **given)
    state = method.prepare(base, experts, structural, ctx or context(len(experts)))
    out = torch.full_like(experts[0], float("nan"), dtype=out_dtype, memory_format=torch.contiguous_format)
    method.apply(state, values, out)
    return out


def names(spec: MethodSpec) -> set[str]:
    return {parameter.name for parameter in spec.hyperparameters}


def whole(spec: MethodSpec, count: int) -> dict[str, Any]:
    """Values under which the merge of equal experts, or of one, is that expert."""
    exact: dict[str, Any] = {"coefficient": [1.0 / count] * count, "density": [1.0] * count, "lambda": 1.0}
    exact |= {"t": 1.0, "min_agreement": 1, "iqr_factor": -1e6, "isotropy": 0.0, "eta": 100.0, "common_share": 1.0}
    exact |= {"keep": 1.0, "seam_weight": 1.0, "draw": 0}
    if spec.name in ("consensus", "consensus_ties"):
        exact["lambda"] = 1.0 / count  # they add task vectors up
    if spec.name in ("wudi", "wudi2"):
        exact["coefficient"] = [1.0] * count  # their targets, which equal experts share
        exact |= {"solver": "closed_form", "time": 1e7, "rank_share": float(count)}
    if spec.name in ("drm_h", "drm_v"):
        exact |= {"coefficient": [1.0] * count, "drop": 1e-9}  # they average
    exact["calibration"] = 1.0 / count
    return {name: value for name, value in exact.items() if name in names(spec)}


def corners(spec: MethodSpec) -> list[dict[str, Any]]:
    """Every combination of the ends of all ranges; of more than a hundred some, in which every end occurs."""
    options = [
        parameter.choices or ((False, True) if parameter.kind == "bool" else (parameter.low, parameter.high))
        for parameter in spec.hyperparameters
    ]
    # More steps of an optimiser take long and lead nowhere else.
    few = [name == "steps" for name in names_in_order(spec)]
    options = [(0, 20) if is_steps else option for is_steps, option in zip(few, options, strict=True)]
    every = [dict(zip(names_in_order(spec), corner, strict=True)) for corner in itertools.product(*options)]
    step = 1 if len(every) <= 100 else len(every) // 50
    while math.gcd(step, len(every)) > 1:
        step += 1
    return every[::step]


def names_in_order(spec: MethodSpec) -> list[str]:
    return [parameter.name for parameter in spec.hyperparameters]
