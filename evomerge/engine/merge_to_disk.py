"""A recipe to a checkpoint that others can load, tensor by tensor, with little memory and nothing half-written."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.engine.adapted_models import open_for_output
from evomerge.engine.architecture import FILES_ONLY
from evomerge.engine.blame import blame
from evomerge.engine.export_forms import MERGEKIT_NOTE, ExportPlan, check_form, plan_export
from evomerge.engine.model_card import model_card
from evomerge.engine.model_tensors import ModelTensors, OpenModels
from evomerge.engine.output_directory import check_output_dir, output_directory
from evomerge.engine.output_plan import OutputUnit
from evomerge.engine.provenance import HASH_KINDS, fingerprints, merge_identity
from evomerge.engine.safetensors_header import weight_files
from evomerge.engine.shard_writer import DEFAULT_SHARD_BYTES, ShardWriter, plan_shards
from evomerge.engine.tensor_merge import TensorMerger, check_finite
from evomerge.engine.tensor_threads import TensorThreads
from evomerge.engine.tokenizer_files import copy_other_files, find_template, write_side_files
from evomerge.errors import MergeFailed, UserError
from evomerge.methods.elementwise import checked_copy
from evomerge.recipes.recipe import Merge, Node, Recipe, Stack, children
from evomerge.yaml_files import format_flow

RECIPE_NAME = "evomerge_recipe.yaml"
MERGEKIT_NAME = "mergekit_config.yml"

Progress = Callable[[int, int], None]
Told = Callable[[str], None]
TensorPlace = tuple[str, int | None, str]  # name, block, component


def merge_to_disk(
    recipe: Recipe,
    out_dir: Path,
    progress: Progress | None = None,
    card: Mapping[str, Any] | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    hash_kind: str = "headers",
    *,
    form: str = "plain",
    told: Told | None = None,
) -> Path:
    """Write the recipe's model as sharded safetensors with configuration, tokenizer, recipe and model card.

    The weights are bit for bit those of a live model after ``apply(recipe)``, but for scales of routes, which are
    folded into them; ``from_pretrained`` loads them. A merge that was killed goes on where it was when it is started
    again.

    Args:
        recipe: what to merge.
        out_dir: new or empty; it appears complete or not at all.
        progress: called with (bytes written, bytes in total), first with what an earlier attempt had written.
        card: further facts for the model card, see ``model_card``.
        shard_bytes: largest shard.
        hash_kind: what is hashed for the sources' fingerprints in the recipe file: ``headers`` or ``full`` contents.
        form: ``plain``, ``compact``, ``mergekit`` (no weights) or ``auto``, see ``export_forms``.
        told: called with one line on the form that is written and why, where there are several.

    Returns:
        The directory.

    Raises:
        UserError: the place is taken or in use, the disk is too small, or models are missing or do not fit.
        MergeFailed: merged weights are NaN or infinite.
    """
    if hash_kind not in HASH_KINDS:
        raise UserError(f"--hash: expected {' or '.join(HASH_KINDS)}, got {hash_kind!r}")
    out_dir = Path(out_dir)
    check_output_dir(out_dir)
    if form == "mergekit":
        return _write_mergekit(recipe, out_dir, card, hash_kind)
    plan = plan_export(recipe, form)
    models = plan.models
    reference = models.get(recipe.reference)
    directories = [models.get(source).directory for source in recipe.sources]
    template = find_template(recipe.chat_template, reference.directory, directories)
    if told is not None and plan.reason:
        told(f"{plan.form}: {plan.reason}")
    units = plan.units()
    shards = plan_shards([entry for unit in units for entry in unit.entries], shard_bytes, _stem(reference, models))
    with output_directory(out_dir, merge_identity(recipe, shards), shards) as output:
        writer = ShardWriter(output.path, shards, output.kept, output.record)
        try:
            _write_weights(plan, units, writer, progress)
        finally:
            writer.close()
        _write_beside_weights(plan, reference, output.path, template)
        about = {**(card or {}), **({"form": plan.note} if plan.note else {})}
        _write_recipe(recipe, models, output.path, (out_dir.name, about, hash_kind))
    return out_dir


def _write_beside_weights(plan: ExportPlan, reference: ModelTensors, directory: Path, template: str | None) -> None:
    """Configuration, tokenizer and whatever else a model's directory holds."""
    if plan.models.architecture.model_type == FILES_ONLY:
        copy_other_files(reference.directory, directory)
    else:
        write_side_files(reference.directory, directory, plan.models.tokens, template)
        _write_config(plan, reference, directory)


def _write_mergekit(recipe: Recipe, out_dir: Path, card: Mapping[str, Any] | None, hash_kind: str) -> Path:
    """Write a route as mergekit's YAML with recipe and model card, and no weights."""
    from evomerge.recipes.mergekit_yaml import NotExpressible, format_mergekit

    check_form(recipe, "mergekit")
    models, _ = open_for_output(recipe)
    try:
        format_mergekit(recipe, models.architecture.num_blocks, _places(models))
    except NotExpressible as error:
        raise UserError(f"the route cannot be written for mergekit: {error}; use plain or compact") from error
    with output_directory(out_dir, merge_identity(recipe, ()), ()) as output:
        _write_recipe(recipe, models, output.path, (out_dir.name, {**(card or {}), "form": MERGEKIT_NOTE}, hash_kind))
    return out_dir


def _places(models: OpenModels) -> list[TensorPlace]:
    return [(slot.name, slot.block, slot.component) for slot in models.architecture.slots]


def _stem(reference: ModelTensors, models: OpenModels) -> str:
    """Beginning of the weight files' names: that of the reference's where no class prescribes one."""
    if models.architecture.model_type != FILES_ONLY:
        return "model"
    name = weight_files(reference.directory)[0].name.removesuffix(".safetensors")
    return re.sub(r"-\d{5}-of-\d{5}$", "", name)


def _write_weights(
    plan: ExportPlan,
    units: list[OutputUnit],
    writer: ShardWriter,
    progress: Progress | None,
) -> None:
    recipe, models, root = plan.recipe, plan.stored_models, plan.stored
    threads = TensorThreads(torch.get_num_threads(), models.architecture)
    merger = _merger(recipe, models, threads)
    wanted = {entry.name for entry in writer.entries}
    total = sum(entry.num_bytes for unit in units for entry in unit.entries)
    done = total - sum(entry.num_bytes for entry in writer.entries)
    if progress is not None:
        progress(done, total)

    def merge(unit: OutputUnit) -> list[Tensor]:
        if unit.given is not None:
            return [unit.given]
        if not unit.slots:
            buffer = models.buffer(unit.copied)
            assert buffer is not None
            return [buffer]
        tensors = []
        for slot in unit.slots:
            with torch.no_grad():
                merged = torch.empty(slot.shape, dtype=unit.entries[0].dtype)
                fold = plan.folding.folds.get(slot.name)
                unrounded = merged if fold is None else torch.empty(slot.shape, dtype=_wide(merged.dtype))
                try:
                    merger.write(merger.pending(root, slot), unrounded)
                except MergeFailed as error:
                    if slot.name in str(error):
                        raise
                    raise MergeFailed(f"recipe: tensor {slot.name}: {error}") from error
                if fold is not None:
                    fold.write(unrounded, merged)
                try:
                    check_finite([(slot.name, checked_copy(None, merged))])
                except MergeFailed as error:
                    raise MergeFailed(f"{error}{blame(recipe, models, slot)}") from None
            models.release(slot)
            tensors.append(merged)
        return unit.stored(tensors)

    todo = [unit for unit in units if any(entry.name in wanted for entry in unit.entries)]
    try:
        merger.start_candidate(root)
        for unit, tensors in zip(todo, threads.in_order(merge, todo), strict=True):
            for entry, tensor in zip(unit.entries, tensors, strict=True):
                if entry.name in wanted:
                    writer.write(entry.name, tensor)
                    done += entry.num_bytes
                    if progress is not None:
                        progress(done, total)
    finally:
        threads.close()
    writer.finish()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _merger(recipe: Recipe, models: OpenModels, threads: TensorThreads) -> TensorMerger:
    if recipe.parity is None:
        return TensorMerger(models, torch.device("cpu"), state_memory_bytes=0, threads=threads)
    from evomerge.engine.parity_merge import ParityMerger

    return ParityMerger(models, recipe.compute_dtype)


def _write_config(plan: ExportPlan, reference: ModelTensors, directory: Path) -> None:
    recipe, models = plan.recipe, plan.models
    config = models.config_json()
    if recipe.dtype is not None:
        _set_dtype(config, recipe.dtype)
        for part in config.values():
            if isinstance(part, dict):
                _set_dtype(part, recipe.dtype, only_present=True)
    if models.architecture.tied and not models.architecture.is_tied and reference.is_tied(models.architecture):
        config["tie_word_embeddings"] = False
        if isinstance(config.get("text_config"), dict):
            config["text_config"]["tie_word_embeddings"] = False
    config.pop("_name_or_path", None)
    if plan.compact is not None:
        config.update(plan.compact.config)
        for name, text in plan.compact.files.items():
            (directory / name).write_text(text)
    (directory / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _set_dtype(config: dict[str, Any], dtype: str, only_present: bool = False) -> None:
    keys = [key for key in ("dtype", "torch_dtype") if key in config]
    for key in keys or ([] if only_present else ["dtype"]):
        config[key] = dtype


def _write_recipe(
    recipe: Recipe, models: OpenModels, directory: Path, about: tuple[str, Mapping[str, Any], str]
) -> None:
    from evomerge.recipes.mergekit_yaml import NotExpressible, format_mergekit
    from evomerge.recipes.recipe_yaml import format_recipe

    title, card, hash_kind = about
    text, found = format_recipe(recipe), fingerprints(recipe, hash_kind)
    lines = [f"  {format_flow(source)}: {format_flow(files)}" for source, files in found.items()]
    kept = "\n".join([text.rstrip("\n"), "fingerprints:", *lines])
    (directory / RECIPE_NAME).write_text(kept + "\n")
    if len(models.architecture.stacks) < 2 or not _depends_on_blocks(recipe.model):
        with contextlib.suppress(NotExpressible):  # where the recipe says more than mergekit's dialect can
            mergekit = format_mergekit(recipe, models.architecture.num_blocks, _places(models))
            (directory / MERGEKIT_NAME).write_text(mergekit)
    (directory / "README.md").write_text(model_card(recipe, text, title, {**card, "fingerprints": _short(found)}))


def _short(found: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"`{source}`": ", ".join(
            f"{name} {entry.get('sha256', entry['header_sha256'])[:16]}" for name, entry in files.items()
        )
        for source, files in found.items()
    }


def _depends_on_blocks(node: Node) -> bool:
    """Whether values differ between blocks, which mergekit numbers from 0 in every stack."""
    if isinstance(node, Merge):
        rules = [rule for _, rules in node.parameters for rule in rules]
        if any(rule.blocks is not None or rule.outside_blocks or isinstance(rule.value, tuple) for rule in rules):
            return True
    return isinstance(node, Stack) or any(_depends_on_blocks(child) for child in children(node))
