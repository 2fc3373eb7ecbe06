"""A recipe to a checkpoint that others can load, tensor by tensor, with little memory and nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.engine.adapted_models import open_for_output
from evomerge.engine.model_card import model_card
from evomerge.engine.model_tensors import ModelTensors, OpenModels
from evomerge.engine.shard_writer import (
    DEFAULT_SHARD_BYTES,
    ShardWriter,
    TensorEntry,
    atomic_directory,
    check_output_dir,
)
from evomerge.engine.tensor_merge import OutputDtype, TensorMerger, check_finite
from evomerge.engine.tensor_threads import TensorThreads
from evomerge.engine.tokenizer_files import find_template, write_side_files
from evomerge.methods.elementwise import checked_copy
from evomerge.recipes.recipe import Node, Recipe

Progress = Callable[[int, int], None]


def merge_to_disk(
    recipe: Recipe,
    out_dir: Path,
    progress: Progress | None = None,
    card: Mapping[str, Any] | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Path:
    """Write the recipe's model as sharded safetensors with configuration, tokenizer, recipe and model card.

    The weights are bit for bit those of a live model after ``apply(recipe)``, and ``from_pretrained`` loads them.

    Args:
        recipe: what to merge.
        out_dir: new or empty; it appears complete or not at all.
        progress: called with (tensors done, tensors in total).
        card: further facts for the model card, see ``model_card``.
        shard_bytes: largest shard.

    Returns:
        The directory.

    Raises:
        UserError: the place is taken, the disk is too small, or models are missing or do not fit.
        MergeFailed: merged weights are NaN or infinite.
    """
    out_dir = Path(out_dir)
    check_output_dir(out_dir)
    models, root = open_for_output(recipe)
    directories = [models.get(source).directory for source in recipe.sources]
    template = find_template(recipe.chat_template, models.get(recipe.reference).directory, directories)
    entries = _plan(recipe, models)
    with atomic_directory(out_dir, sum(entry.num_bytes for entry in entries)) as directory:
        writer = ShardWriter(directory, entries, shard_bytes)
        try:
            _write_weights(_merger(recipe, models), root, writer, progress)
        finally:
            writer.close()
        reference = models.get(recipe.reference)
        write_side_files(reference.directory, directory, models.tokens, template)
        _write_config(recipe, models, reference, directory)
        _write_recipe(recipe, models, directory, out_dir.name, card)
    return out_dir


def _plan(recipe: Recipe, models: OpenModels) -> list[TensorEntry]:
    output = OutputDtype(recipe, models)
    entries = [TensorEntry(slot.name, output.of(slot), slot.shape) for slot in models.architecture.slots]
    for name in models.architecture.buffers:
        buffer = models.buffer(name)
        if buffer is not None:
            entries.append(TensorEntry(name, buffer.dtype, tuple(buffer.shape)))
    return entries


def _merger(recipe: Recipe, models: OpenModels) -> TensorMerger:
    if recipe.parity is None:
        return TensorMerger(models, torch.device("cpu"), state_memory_bytes=0)
    from evomerge.engine.parity_merge import ParityMerger

    return ParityMerger(models, recipe.compute_dtype)


def _write_weights(merger: TensorMerger, root: Node, writer: ShardWriter, progress: Progress | None) -> None:
    models = merger.models
    merger.start_candidate(root)
    slots = models.architecture.by_name

    def merge(entry: TensorEntry) -> Tensor:
        slot = slots.get(entry.name)
        if slot is None:
            buffer = models.buffer(entry.name)
            assert buffer is not None
            return buffer
        with torch.no_grad():
            merged = torch.empty(entry.shape, dtype=entry.dtype)
            merger.write(merger.pending(root, slot), merged)
            check_finite([(entry.name, checked_copy(None, merged))])
        models.release(slot)
        return merged

    threads = TensorThreads(torch.get_num_threads(), models.architecture)
    try:
        merged_tensors = threads.in_order(merge, writer.entries)
        for done, (entry, tensor) in enumerate(zip(writer.entries, merged_tensors, strict=True), start=1):
            writer.write(entry.name, tensor)
            if progress is not None:
                progress(done, len(writer.entries))
    finally:
        threads.close()
    writer.finish()


def _write_config(recipe: Recipe, models: OpenModels, reference: ModelTensors, directory: Path) -> None:
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
    (directory / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _set_dtype(config: dict[str, Any], dtype: str, only_present: bool = False) -> None:
    keys = [key for key in ("dtype", "torch_dtype") if key in config]
    for key in keys or ([] if only_present else ["dtype"]):
        config[key] = dtype


def _write_recipe(
    recipe: Recipe, models: OpenModels, directory: Path, title: str, card: Mapping[str, Any] | None
) -> None:
    from evomerge.recipes.mergekit_yaml import NotExpressible, format_mergekit
    from evomerge.recipes.recipe_yaml import format_recipe

    text = format_recipe(recipe)
    (directory / "recipe.yaml").write_text(text)
    try:
        tensors = [(slot.name, slot.block, slot.component) for slot in models.architecture.slots]
        mergekit = format_mergekit(recipe, models.architecture.num_blocks, tensors)
    except NotExpressible:
        pass  # the recipe says more than mergekit's dialect can
    else:
        (directory / "mergekit_config.yml").write_text(mergekit)
    (directory / "README.md").write_text(model_card(recipe, text, title, card))
