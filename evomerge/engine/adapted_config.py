"""A model's config.json for another depth or vocabulary: counts, and whatever the configuration lists per block."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.engine.architecture import load_config
from evomerge.errors import UserError

# Lists that are as long as the model is deep only by chance.
NOT_PER_BLOCK = ("architectures", "suppress_tokens", "begin_suppress_tokens")
# Lists of the numbers of some blocks.
BLOCK_NUMBERS = ("mlp_only_layers", "cross_attention_layers", "attn_layer_indices")


@dataclass(frozen=True)
class ModelSizes:
    """What tells models apart that otherwise have one architecture.

    Attributes:
        num_blocks: depth.
        vocab_size: rows of the embeddings.
    """

    num_blocks: int
    vocab_size: int


def read_sizes(directory: Path) -> ModelSizes:
    """Depth and vocabulary of the model in a directory.

    Raises:
        UserError: its configuration names neither.
    """
    text = load_config(directory).get_text_config()
    depth, rows = getattr(text, "num_hidden_layers", None), getattr(text, "vocab_size", None)
    if not isinstance(depth, int) or not isinstance(rows, int):
        raise UserError(f"{directory}: its config.json names no number of blocks or tokens; it cannot be stacked")
    return ModelSizes(depth, rows)


def adapted_config(
    reference: Path, blocks: Sequence[tuple[Path, int]] | None, vocab_size: int | None
) -> dict[str, Any]:
    """The reference's config.json for other blocks and another vocabulary.

    Args:
        reference: directory whose configuration is taken.
        blocks: for every block of the new model the directory and block that it comes from; None = as they are.
        vocab_size: rows of the new embeddings; None = as they are.

    Raises:
        UserError: the configuration lists something per block that another model's does not.
    """
    config: dict[str, Any] = json.loads((reference / "config.json").read_text())
    loaded = load_config(reference)
    text = loaded.get_text_config()
    inner = config if text is loaded else config.get("text_config", config)
    if vocab_size is not None:
        for part in (config, inner):
            if part is inner or "vocab_size" in part:
                part["vocab_size"] = vocab_size
    if blocks is not None:
        names = dict(text.attribute_map)
        key = names.get("num_hidden_layers", "num_hidden_layers")
        for name in {key, "num_hidden_layers"} & inner.keys() or {key}:
            inner[name] = len(blocks)
        inner.update(_per_block(reference, text, blocks))
    return config


def _per_block(reference: Path, text: Any, blocks: Sequence[tuple[Path, int]]) -> dict[str, Any]:
    """What the configuration says per block, for the new blocks; patterns (sliding windows) come as explicit lists."""
    tables = {
        path: block_tables(load_config(path).get_text_config()) for path in dict.fromkeys(path for path, _ in blocks)
    }
    found: dict[str, Any] = {}
    for name in block_tables(text):
        lacking = [path for path, table in tables.items() if name not in table]
        if lacking:
            raise UserError(f"{lacking[0]}: its configuration has no {name} for each block, unlike {reference}")
        found[name] = [tables[path][name][block] for path, block in blocks]
    for name in BLOCK_NUMBERS:
        if isinstance(getattr(text, name, None), list):
            kept = {path: getattr(load_config(path).get_text_config(), name, None) or [] for path in tables}
            found[name] = [index for index, (path, block) in enumerate(blocks) if block in kept[path]]
    if "attention_layers" in found and hasattr(text, "attention_types"):
        found["attention_types"] = [[found["attention_layers"], 1]]
    return found


def load_adapted_config(reference: Path, blocks: Sequence[tuple[Path, int]]) -> Any:
    """As ``adapted_config``, as transformers reads it.

    Args:
        reference: directory whose configuration is taken.
        blocks: for every block of the new model the directory and block that it comes from.

    Raises:
        UserError: the configuration lists something per block that another model's does not.
    """
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(adapted_config(reference, blocks, None)))
        return load_config(Path(directory))


def block_tables(text: Any) -> dict[str, list[Any]]:
    """Every list of a model's configuration that has one entry for each block, by name."""
    depth = text.num_hidden_layers
    return {
        name: value
        for name, value in text.to_dict().items()
        if isinstance(value, list)
        and len(value) == depth
        and name not in NOT_PER_BLOCK
        and name not in BLOCK_NUMBERS
        and not name.endswith(("token_id", "token_ids"))
    }
