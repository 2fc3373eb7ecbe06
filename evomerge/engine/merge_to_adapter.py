"""A merge of LoRA adapters on one base as a LoRA adapter: sums exactly, everything else as near as a rank allows.

A sum of task vectors that are products of thin matrices is the product of their joined factors, cut to the wanted rank.
A method that merges factors gives the factors of its result, which are written as they are at the adapters' own rank.
Any other merge is computed tensor by tensor and cut by its singular values; how much that loses is reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.engine.adapter_factors import merged_factors
from evomerge.engine.architecture import Slot
from evomerge.engine.fit_problems import some
from evomerge.engine.lora import PREFIX, LoraAdapter
from evomerge.engine.low_rank import LowRank, cut_matrix, sum_of_products
from evomerge.engine.merge_plan import MergePlan
from evomerge.engine.merge_to_disk import RECIPE_NAME
from evomerge.engine.model_card import model_card
from evomerge.engine.model_tensors import OpenModels
from evomerge.engine.output_directory import check_output_dir, output_directory
from evomerge.engine.provenance import fingerprints
from evomerge.engine.shard_writer import Shard, ShardWriter, TensorEntry
from evomerge.engine.sources import ADAPTER_WEIGHTS
from evomerge.engine.tensor_merge import DTYPES, TensorMerger, check_finite
from evomerge.errors import UserError
from evomerge.methods.elementwise import checked_copy
from evomerge.methods.inputs import normalizer
from evomerge.recipes.recipe import Merge, Recipe, Source
from evomerge.recipes.resolve import resolve_values

SUMS = ("linear", "task_arithmetic")  # methods that add task vectors, each times one number
SAME = 1e-6  # a tensor that changed by a smaller share of its norm did not change

Factors = dict[str, Tensor]  # PEFT's name of each factor


@dataclass(frozen=True)
class AdapterReport:
    """What was written.

    Attributes:
        path: the adapter's directory.
        rank: its rank.
        residual: what the rank cut off as a share of the merged change of all tensors, in the Frobenius norm.
        residuals: the same for every changed tensor, largest first.
        num_exact: tensors whose change was summed from the factors instead of computed in full.
    """

    path: Path
    rank: int
    residual: float
    residuals: tuple[tuple[str, float], ...]
    num_exact: int


def merge_to_adapter(
    recipe: Recipe, out_dir: Path, rank: int, progress: Callable[[int, int], None] | None = None
) -> AdapterReport:
    """Write the merge of adapters as an adapter that peft loads on the same base.

    Args:
        recipe: a merge whose experts are all adapters on one base; the base is that model or left out.
        out_dir: new or empty; it appears complete or not at all.
        rank: of every adapted tensor.
        progress: called with (bytes looked at, bytes in total) of the base model.

    Raises:
        UserError: experts that are no adapters on one base, or a change that no adapter of matrices can express.
        MergeFailed: merged weights are NaN or infinite.
    """
    out_dir = Path(out_dir)
    check_output_dir(out_dir)
    if rank < 1:
        raise UserError(f"--rank: expected a whole number of at least 1, got {rank}")
    for key in ("vocabulary", "chat_template", "parity"):
        if getattr(recipe, key) is not None:
            name = "tokenizer" if key == "vocabulary" else key
            raise UserError(f"recipe: {name}: an adapter keeps its base's; remove it or leave out --output adapter")
    base = _common_base(recipe)
    models = OpenModels(base, recipe.sources)
    merging = _Merging(recipe, base, models, rank)
    total = sum(slot.num_elements for slot in models.architecture.slots)
    found: dict[str, LowRank] = {}
    stuck: list[str] = []
    done = 0
    for slot in models.architecture.slots:
        change = merging.change(slot)
        if change is not None:
            if merging.kind(slot) is None:
                stuck.append(slot.name)
            elif isinstance(change, LowRank):
                found[slot.name] = change
            else:
                found[slot.name] = cut_matrix(merging.as_map(slot, change), rank, slot.name)
        models.release(slot)
        done += slot.num_elements
        if progress is not None:
            progress(2 * done, 2 * total)
    if stuck:
        raise UserError(
            f"recipe: the merge changes tensors that a LoRA adapter cannot express: {some(stuck)}. Write the whole "
            "model instead (leave out --output adapter), or merge adapters without modules_to_save."
        )
    if not found:
        raise UserError("recipe: the merge changes nothing, so there is no adapter to write")
    return _write(recipe, models, merging, found, out_dir)


class _Merging:
    """The change of every tensor, as factors where that is exact."""

    def __init__(self, recipe: Recipe, base: Source, models: OpenModels, rank: int) -> None:
        assert isinstance(recipe.model, Merge)
        self.rank, self.base, self.models, self._node = rank, base, models, recipe.model
        self.num_exact = 0
        for source in models.sources:
            models.get(source).wide_adapter = True  # rounding to the base's dtype would be a change of full rank
        self._merger = TensorMerger(models, torch.device("cpu"), state_memory_bytes=0)
        self._merger.start_candidate(recipe.model)
        self._plan = MergePlan(recipe.model, models.architecture.num_blocks, models.architecture)
        self._modules = {} if models.architecture.model is None else dict(models.architecture.model.named_modules())
        self._experts = [
            (name, models.get(source)) for name, source in recipe.model.experts if isinstance(source, Source)
        ]

    def kind(self, slot: Slot) -> str | None:
        """How peft adapts a tensor, None when it cannot."""
        module_name, _, parameter = slot.name.rpartition(".")
        module = self._modules.get(module_name)
        if parameter != "weight" or module is None:
            return None
        if type(module).__name__ == "Conv1D" and len(slot.shape) == 2:
            return "transposed"
        if isinstance(module, nn.Embedding):
            return "embedding"
        return "linear" if isinstance(module, nn.Linear) and len(slot.shape) == 2 else None

    def as_map(self, slot: Slot, matrix: Tensor) -> Tensor:
        """A tensor as ``(out, in)``."""
        return matrix if self.kind(slot) == "linear" else matrix.T

    def change(self, slot: Slot) -> Tensor | LowRank | None:
        """Merged tensor minus the base's, None where they are the same; ``(out, in)`` when in factors."""
        exact = self._exact(slot) if self._plan.spec.takes == "tensors" else self._of_factors(slot)
        if exact is not None:
            self.num_exact += 1
            return exact if exact.norm else None
        with torch.no_grad():
            merged = torch.empty(slot.shape, dtype=torch.float32)
            self._merger.write(self._merger.pending(self._node, slot), merged)
            check_finite([(slot.name, checked_copy(None, merged))])
            original = self.models.get(self.base).tensor(slot.name).float()
            merged -= original
            return merged if float(merged.norm()) > SAME * float(original.norm()) else None

    def _of_factors(self, slot: Slot) -> LowRank | None:
        """What a method on adapters makes of their factors."""
        found = merged_factors(self._plan, self.models, slot)
        if found is None or self.kind(slot) is None:
            return None
        if found.rank != self.rank:
            return sum_of_products([found.up], [found.down], self.rank)
        norm = torch.linalg.matrix_norm(found.up.double() @ found.down.double())
        return LowRank(found.up, found.down, 0.0, float(norm))

    def _exact(self, slot: Slot) -> LowRank | None:
        """The sum of the adapters' products, where the method is one and every adapter has one or nothing."""
        if self._node.method not in SUMS or self.kind(slot) is None:
            return None
        adapters = [_adapter(model.adapter) for _, model in self._experts]
        names = [model.adapter_name(slot.name) for _, model in self._experts]
        if not all(adapter.is_product(name) or name not in adapter.names for adapter, name in zip(adapters, names)):
            return None
        weights = self._weights(slot)
        ups, downs = [], []
        for adapter, name, weight in zip(adapters, names, weights or ()):
            if name in adapter.names:
                up, down = adapter.factors(name)
                ups.append(up.double() * weight)
                downs.append(down)
        return sum_of_products(ups, downs, self.rank) if ups else None

    def _weights(self, slot: Slot) -> list[float] | None:
        """What each task vector is multiplied with; None where the sum also scales the base."""
        count = self.models.architecture.num_blocks
        values: Mapping[str, Any] = resolve_values(self._node, slot.name, slot.block, slot.component, count)
        coefficients = [float(value) for value in values["coefficient"]]
        if self._node.method == "task_arithmetic":
            scale = float(values["lambda"]) / normalizer(coefficients, bool(values["normalize"]))
            return [scale * value for value in coefficients]
        total = sum(coefficients)
        if not values["normalize"]:
            return coefficients if abs(total - 1.0) < SAME else None
        return [value / total for value in coefficients] if abs(total) > SAME else None


def _common_base(recipe: Recipe) -> Source:
    node = recipe.model
    if not isinstance(node, Merge):
        raise UserError("recipe: an adapter is written from a merge of adapters, this is one model")
    experts = [expert for _, expert in node.experts]
    models = {Source(e.model, e.revision) for e in experts if isinstance(e, Source) and e.adapter and e.into is None}
    whole = [
        name for name, expert in node.experts if not isinstance(expert, Source) or not expert.adapter or expert.into
    ]
    if whole:
        raise UserError(f"recipe: --output adapter needs experts that are all adapters; these are not: {some(whole)}")
    if node.base is not None and isinstance(node.base, Source):
        models.add(node.base)
    if len(models) != 1 or (node.base is not None and not isinstance(node.base, Source)):
        named = ", ".join(sorted(map(str, models)))
        raise UserError(f"recipe: --output adapter needs adapters on one base, which is also `base`; got {named}")
    return models.pop()


def _adapter(adapter: LoraAdapter | None) -> LoraAdapter:
    assert adapter is not None
    return adapter


def _write(
    recipe: Recipe, models: OpenModels, merging: _Merging, found: Mapping[str, LowRank], out_dir: Path
) -> AdapterReport:
    from evomerge.recipes.recipe_yaml import format_recipe

    dtype = DTYPES[recipe.dtype] if recipe.dtype else torch.float32
    factors: Factors = {}
    for name, product in found.items():
        module = name.rpartition(".")[0]
        slot = models.architecture.by_name[name]
        middle = "lora_embedding_" if merging.kind(slot) == "embedding" else "lora_"
        ending = "" if merging.kind(slot) == "embedding" else ".weight"
        factors[f"{PREFIX}{module}.{middle}A{ending}"] = product.down.to(dtype).contiguous()
        factors[f"{PREFIX}{module}.{middle}B{ending}"] = product.up.to(dtype).contiguous()
    entries = tuple(TensorEntry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in factors.items())
    shard = Shard(ADAPTER_WEIGHTS, entries)
    report = _report(found, merging, out_dir)
    with output_directory(out_dir, {"adapter": recipe.recipe_id, "rank": merging.rank}, [shard]) as output:
        writer = ShardWriter(output.path, [shard])
        try:
            for entry in writer.entries:
                writer.write(entry.name, factors[entry.name])
            writer.finish()
        finally:
            writer.close()
        (output.path / "adapter_config.json").write_text(json.dumps(_config(models, merging, found), indent=2) + "\n")
        text = format_recipe(recipe)
        (output.path / RECIPE_NAME).write_text(text + "fingerprints: " + json.dumps(fingerprints(recipe)) + "\n")
        about = {
            "summary": f"A LoRA adapter of rank {merging.rank} on `{merging.base}`.",
            "cut off by the rank": {
                name: f"{share:.3g}" for name, share in (("total", report.residual), *report.residuals)
            },
        }
        (output.path / "README.md").write_text(model_card(recipe, text, out_dir.name, about))
    return report


def _report(found: Mapping[str, LowRank], merging: _Merging, out_dir: Path) -> AdapterReport:
    whole = sum(product.norm**2 for product in found.values())
    lost = sum((product.residual * product.norm) ** 2 for product in found.values())
    shares = sorted(((name, product.residual) for name, product in found.items()), key=lambda entry: -entry[1])
    return AdapterReport(
        out_dir, merging.rank, (lost / whole) ** 0.5 if whole else 0.0, tuple(shares), merging.num_exact
    )


def _config(models: OpenModels, merging: _Merging, found: Mapping[str, LowRank]) -> dict[str, Any]:
    kinds = {merging.kind(models.architecture.by_name[name]) for name in found}
    adapters = [model.adapter for source in models.sources if (model := models.get(source)).adapter is not None]
    return {
        "peft_type": "LORA",
        "task_type": next((adapter.config.get("task_type") for adapter in adapters if adapter is not None), None),
        "base_model_name_or_path": merging.base.model,
        "revision": merging.base.revision,
        "r": merging.rank,
        "lora_alpha": merging.rank,  # the factors hold their scale
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": "transposed" in kinds,
        "target_modules": [name.rpartition(".")[0] for name in found],
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
