"""What the tensors of a model are: their block, their component, which are tied. Found from the model itself.

The model is built from its configuration on the meta device (no memory, no weights, no remote code), so there are no
per-architecture files. Blocks are the items of the largest outermost ModuleList.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evomerge.errors import UserError

# Parts of module names between a block and its tensor, by component; the first that matches wins.
ATTENTION_WORDS = re.compile(r"attn|attention|mixer|mamba|ssm|retention|linear_attn")
MLP_WORDS = re.compile(r"mlp|ffn|feed_?forward|moe|expert|dense_h_to|dense_4h|fc\d|ff_")
NORM_WORDS = re.compile(r"norm|(^|_)ln(_|\d|$)")


@dataclass(frozen=True)
class Slot:
    """One floating-point tensor that a merge writes.

    Attributes:
        name: the parameter's name in the model (tied parameters appear once, under their first name).
        shape: its shape.
        block: index of its block, None outside the blocks.
        component: ``attention``, ``mlp``, ``norms``, ``embeddings``, ``head`` or ``other``.
    """

    name: str
    shape: tuple[int, ...]
    block: int | None
    component: str

    @property
    def num_elements(self) -> int:
        """Number of its entries."""
        return math.prod(self.shape)

    @property
    def is_vocabulary(self) -> bool:
        """Whether its rows are tokens."""
        return self.component in ("embeddings", "head")


@dataclass(frozen=True)
class Architecture:
    """Structure of a causal language model.

    Attributes:
        model_type: transformers' name of the architecture.
        num_blocks: number of blocks.
        slots: every tensor a merge writes, in model order.
        buffers: names of persistent buffers, which are copied and never merged.
        tied: head-like name to the name whose tensor it uses, for every pair the architecture can tie.
        is_tied: whether the pairs of ``tied`` share one tensor in this model.
        prefix: first name part that checkpoints may leave out (``transformer.`` in old GPT-2 files).
    """

    model_type: str
    num_blocks: int
    slots: tuple[Slot, ...]
    buffers: tuple[str, ...]
    tied: tuple[tuple[str, str], ...]
    is_tied: bool
    prefix: str

    @cached_property
    def by_name(self) -> dict[str, Slot]:
        """Slots by tensor name."""
        return {slot.name: slot for slot in self.slots}

    def stored_name(self, name: str, stored: Container[str], use_tied: bool = True) -> str | None:
        """The name under which a checkpoint holds a tensor of the model, None when it has none.

        Args:
            name: the tensor's name in the model.
            stored: names in the checkpoint.
            use_tied: whether a head that is missing may be read from the embeddings it is tied to.
        """
        spellings = [name, name.removeprefix(self.prefix), self.prefix + name]
        for spelling in spellings:
            if spelling in stored:
                return spelling
        partner = dict(self.tied).get(name)
        return self.stored_name(partner, stored, use_tied=False) if use_tied and partner else None

    @staticmethod
    def of_directory(directory: Path, tie: bool | None = None) -> Architecture:
        """Structure of the model in a directory.

        Args:
            directory: has the config.json.
            tie: overrides the configuration's ``tie_word_embeddings``.

        Raises:
            UserError: no usable configuration, remote code, or no blocks found.
        """
        config = load_config(directory)
        if tie is not None:
            config.get_text_config().tie_word_embeddings = tie
            config.tie_word_embeddings = tie
        return describe(build_on_meta(config, directory))


def load_config(directory: Path) -> Any:
    """The transformers configuration in a directory, never running code from it.

    Raises:
        UserError: missing, unreadable, unknown to the installed transformers, or quantised.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{directory}: transformers does not know this architecture ({reason})") from error
    if getattr(config, "quantization_config", None):
        raise UserError(f"{directory}: its weights are quantised; merging needs them in bfloat16, float16 or float32")
    return config


def build_on_meta(config: Any, directory: Path) -> nn.Module:
    """The model of a configuration without memory for its weights.

    Raises:
        UserError: transformers cannot build it without remote code.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    problems: list[str] = []
    for factory in (AutoModelForCausalLM, AutoModel):
        try:
            with torch.device("meta"):
                model: nn.Module = factory.from_config(config, trust_remote_code=False)
            return model
        except (ValueError, ImportError, AttributeError, KeyError) as error:
            problems.append(str(error).strip().splitlines()[0][:200])
    raise UserError(f"{directory}: transformers cannot build a {config.model_type} model: {problems[0]}")


def describe(model: nn.Module) -> Architecture:
    """Structure of a model, usually one on the meta device.

    Raises:
        UserError: it has no list of blocks.
    """
    blocks_name, blocks = _find_blocks(model)
    components = _Components(model, blocks_name)
    slots = tuple(
        Slot(name, tuple(parameter.shape), *components.of(name))
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
    )
    names = {name for name, _ in model.named_parameters()}
    persistent = tuple(name for name in model.state_dict() if name not in names and name in dict(model.named_buffers()))
    tied = dict(_tied_pairs(model))
    config: Any = model.config
    return Architecture(
        model_type=str(config.model_type),
        num_blocks=len(blocks),
        slots=slots,
        buffers=persistent,
        tied=tuple(sorted(tied.items())),
        is_tied=bool(tied) and not any(name in names for name in tied),
        prefix=str(getattr(model, "base_model_prefix", "")) + ".",
    )


def _find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    modules = model.named_modules()
    lists = [(name, module) for name, module in modules if isinstance(module, nn.ModuleList) and len(module)]
    # A list inside a block (routed experts) may be longer than the list of blocks.
    outermost = [
        (name, module) for name, module in lists if not any(name.startswith(other + ".") for other, _ in lists)
    ]
    if not outermost:
        raise UserError(f"{type(model).__name__}: no list of blocks found in the model")
    return max(outermost, key=lambda entry: (sum(p.numel() for p in entry[1].parameters()), len(entry[1])))


def _tied_pairs(model: nn.Module) -> Iterator[tuple[str, str]]:
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        partner = first.setdefault(id(parameter), name)
        if partner != name:
            yield name, partner
    declared = getattr(model, "_tied_weights_keys", None)
    if isinstance(declared, dict):
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, partner in declared.items():
            if name in parameters and partner in parameters:
                yield name, partner


class _Components:
    """Tells block and component of a parameter from the modules on its path."""

    def __init__(self, model: nn.Module, blocks_name: str) -> None:
        self._modules = dict(model.named_modules())
        self._blocks = re.compile(re.escape(blocks_name) + r"\.(\d+)\.(.+)")
        self._input = _weight_module(model, "get_input_embeddings")
        self._output = _weight_module(model, "get_output_embeddings")

    def of(self, name: str) -> tuple[int | None, str]:
        """Block and component of a parameter."""
        module = self._modules[name.rpartition(".")[0]]
        in_block = self._blocks.fullmatch(name)
        block = int(in_block[1]) if in_block else None
        if block is None and module is self._input:
            return block, "embeddings"
        if block is None and module is self._output:
            return block, "head"
        words = (in_block[2] if in_block else name).split(".")
        if "norm" in type(module).__name__.lower() or any(NORM_WORDS.search(word) for word in words[-2:]):
            return block, "norms"
        if block is None:
            return block, "embeddings" if isinstance(module, nn.Embedding) else "other"
        return block, self._inside_block(name, words[:-1])

    def _inside_block(self, name: str, words: list[str]) -> str:
        path = name.split(".")[: -len(words) - 1] if words else []
        for word in words:
            path.append(word)
            for text in (word.lower(), type(self._modules[".".join(path)]).__name__.lower()):
                if ATTENTION_WORDS.search(text):
                    return "attention"
                if MLP_WORDS.search(text):
                    return "mlp"
        return "other"


def _weight_module(model: nn.Module, getter: str) -> nn.Module | None:
    try:
        module = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None
    return module if isinstance(module, nn.Module) else None
