"""Whether models of different depth can lend blocks to one path, found from configurations and headers alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.engine.architecture import Architecture, load_config
from evomerge.engine.model_tensors import check_models
from evomerge.engine.sources import resolve_source
from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.recipes.recipe import Source

# What must be equal: the stream, the heads that a block's matrices are cut into, and what the ends count.
EQUAL = {
    "hidden_size": "hidden size",
    "num_attention_heads": "number of attention heads",
    "num_key_value_heads": "number of key-value heads",
    "head_dim": "head size",
    "vocab_size": "vocabulary",
}
# What one configuration says for all blocks of a model; parts of `rope_parameters` are compared one by one.
MODEL_WIDE = (
    "rope_theta", "rope_parameters", "partial_rotary_factor", "rms_norm_eps", "layer_norm_eps",
    "layer_norm_epsilon", "norm_epsilon", "norm_eps", "sliding_window", "use_sliding_window", "hidden_act",
    "hidden_activation", "activation_function", "attn_logit_softcapping", "query_pre_attn_scalar",
    "residual_multiplier", "attention_multiplier",
)  # fmt: skip


@dataclass(frozen=True)
class LendingModel:
    """A model that can lend blocks.

    Attributes:
        name: in the experiment.
        source: where it is.
        block_parameters: number of weights of each block.
        outside_parameters: number of weights outside the blocks.
    """

    name: str
    source: Source
    block_parameters: tuple[int, ...]
    outside_parameters: int


def check_route_models(models: Sequence[tuple[str, Source]]) -> tuple[tuple[LendingModel, ...], tuple[str, ...]]:
    """Check that blocks of models can run in one path; nothing but headers and configurations is read.

    Args:
        models: (name, source); the first one lends the ends, and its configuration counts for all blocks.

    Returns:
        The models' sizes, and a line for each setting of a whole model in which one differs from the first.

    Raises:
        InvalidInput: everything that does not fit: missing tensors, another class, other sizes.
    """
    opened: list[_Opened] = []
    problems: list[Problem] = []
    for name, source in models:
        try:
            opened.append(_open(name, source))
        except InvalidInput as error:
            problems += error.problems
        except UserError as error:
            problems.append(Problem(f"model {source}", str(error)))
    for other in opened[1:]:
        where = f"model {other.source}"
        problems += [Problem(where, message) for message in _differences(opened[0], other)]
    if problems:
        raise InvalidInput(list(dict.fromkeys(problems)))
    notes = tuple(note for other in opened[1:] for note in _notes(opened[0], other))
    return tuple(_sizes(entry) for entry in opened), notes


@dataclass(frozen=True)
class _Opened:
    name: str
    source: Source
    kind: str
    config: Any
    architecture: Architecture

    @property
    def title(self) -> str:
        return f"{self.name} ({self.source})"


def _open(name: str, source: Source) -> _Opened:
    config = load_config(resolve_source(source))
    classes = getattr(config, "architectures", None) or [config.model_type]
    architecture = check_models([source]).of_first_stack()
    if not architecture.num_blocks:
        raise UserError("it has no list of blocks that a path could run through")
    return _Opened(name, source, str(classes[0]), config.get_text_config(), architecture)


def _sizes(opened: _Opened) -> LendingModel:
    counts = [0] * opened.architecture.num_blocks
    outside = 0
    for slot in opened.architecture.slots:
        if slot.block is None:
            outside += slot.num_elements
        else:
            counts[slot.block] += slot.num_elements
    return LendingModel(opened.name, opened.source, tuple(counts), outside)


def _differences(first: _Opened, other: _Opened) -> Iterator[str]:
    if other.kind != first.kind:
        yield f"{other.name} is a {other.kind}, {first.title} a {first.kind}; one path needs models of one class"
        return
    is_other_size = False
    for key, what in EQUAL.items():
        ours, theirs = getattr(other.config, key, None), getattr(first.config, key, None)
        if ours != theirs:
            is_other_size = True
            yield f"the {what} of {other.name} is {ours}, that of {first.title} {theirs}; {_advice(key)}"
    if is_other_size:
        return
    known = _block_kinds(first.architecture)
    for kind in _block_kinds(other.architecture):
        if kind not in known:
            nearest = max(known, key=lambda entry: len(set(entry) & set(kind)))
            odd = next((entry for entry in kind if entry not in nearest), kind[0])
            there = dict(nearest).get(odd[0])
            expected = "none" if there is None else str(list(there))
            yield (
                f"blocks of {other.name} have {odd[0]} {list(odd[1])}, those of {first.title} {expected}; "
                "one path needs blocks of one kind"
            )
            return


def _advice(key: str) -> str:
    if key == "vocab_size":
        return "merge the vocabularies to disk first (tokenizer: union), or take models that share a tokenizer"
    return "one path needs models that differ in depth only"


_BlockKind = tuple[tuple[str, tuple[int, ...]], ...]


def _block_kinds(architecture: Architecture) -> list[_BlockKind]:
    """Names and shapes of the tensors in each kind of block."""
    stack = architecture.stacks[0]
    blocks: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(architecture.num_blocks)]
    for slot in architecture.slots:
        place = stack.place(slot.name)
        if place is not None:
            blocks[place[0]].append((place[1], slot.shape))
    return list(dict.fromkeys(tuple(sorted(block)) for block in blocks))


def _notes(first: _Opened, other: _Opened) -> Iterator[str]:
    ours, theirs = _settings(other.config), _settings(first.config)
    for key in dict.fromkeys((*theirs, *ours)):
        if ours.get(key) != theirs.get(key):
            yield (
                f"{other.name}: {key} is {ours.get(key)}, that of {first.name} is {theirs.get(key)}, "
                "which counts for all blocks of a path"
            )


def _settings(config: Any) -> dict[str, Any]:
    """Settings of a whole model; those of positions one by one."""
    found: dict[str, Any] = {}
    for key in MODEL_WIDE:
        value = getattr(config, key, None)
        found |= value if key == "rope_parameters" and isinstance(value, dict) else {key: value}
    return found
