"""What the tensors of a model are: their block, their component, which are tied. Found from the model itself.

The model is built from its configuration on the meta device (no memory, no weights, no remote code), so there are no
per-architecture files. Files of no class that transformers knows tell their names and shapes themselves.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evomerge.engine.architecture_cache import keep_facts, kept_facts
from evomerge.engine.block_stacks import Stack, module_stacks, name_stacks
from evomerge.engine.checkpoint import Checkpoint
from evomerge.engine.components import Components, name_component
from evomerge.engine.stored_layout import StoredLayout, find_layout, plain_layout
from evomerge.errors import UserError

FILES_ONLY = "files"  # model type of what no class is known for


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
    """Structure of a model.

    Attributes:
        model_type: transformers' name of the architecture, ``files`` where it has none.
        num_blocks: number of blocks of all stacks.
        slots: every tensor a merge writes, in model order.
        buffers: names of persistent buffers and of tensors of integers, which are copied and never merged.
        tied: head-like name to the name whose tensor it uses, for every pair the architecture can tie.
        is_tied: whether the pairs of ``tied`` share one tensor in this model.
        optional: slots that the architecture declares a checkpoint may leave out.
        stacks: the lists of blocks; blocks are numbered on from one to the next.
        build: makes the model on the meta device; None where only the files are known.
    """

    model_type: str
    num_blocks: int
    slots: tuple[Slot, ...]
    buffers: tuple[str, ...]
    tied: tuple[tuple[str, str], ...]
    is_tied: bool
    optional: tuple[str, ...] = ()
    stacks: tuple[Stack, ...] = ()
    build: Callable[[], nn.Module] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def model(self) -> nn.Module | None:
        """The model on the meta device, None where only the files are known."""
        return None if self.build is None else self.build()

    @cached_property
    def by_name(self) -> dict[str, Slot]:
        """Slots by tensor name."""
        return {slot.name: slot for slot in self.slots}

    def without(self, names: frozenset[str]) -> Architecture:
        """The same without some of its slots."""
        slots = tuple(slot for slot in self.slots if slot.name not in names)
        return replace(self, slots=slots, optional=tuple(name for name in self.optional if name not in names))

    def of_first_stack(self) -> Architecture:
        """The same with the blocks of the first stack only; all other tensors count as outside the blocks."""
        count = self.stacks[0].count if self.stacks else self.num_blocks
        slots = tuple(
            replace(slot, block=None) if slot.block is not None and slot.block >= count else slot for slot in self.slots
        )
        return replace(self, slots=slots, num_blocks=count, stacks=self.stacks[:1])

    def layout(self, checkpoint: Checkpoint) -> StoredLayout:
        """Where the tensors of the model are in a checkpoint.

        A head that is missing is read from the embeddings it is tied to.
        """
        # Where every name is the model's own there is nothing to convert, and no need for the model.
        is_plain = all(name in checkpoint for name in (*(slot.name for slot in self.slots), *self.buffers))
        model = None if is_plain else self.model
        found = plain_layout(checkpoint) if model is None else find_layout(model, checkpoint)
        for name, partner in self.tied:
            for missing, other in ((name, partner), *(((partner, name),) if self.is_tied else ())):
                if not found.stored_names(missing) and other in found.plain:
                    found.plain[missing] = found.plain[other]
        return found

    @staticmethod
    def of_directory(directory: Path, tie: bool | None = None) -> Architecture:
        """Structure of the model in a directory, from its configuration or, of no known class, from its files.

        Args:
            directory: a model directory, or a single safetensors file.
            tie: overrides the configuration's ``tie_word_embeddings``.

        Raises:
            UserError: quantised weights, or unreadable files.
        """
        if (path := config_path(directory)) is None:
            return describe_files(Checkpoint(directory))
        if (known := kept_facts(path, tie)) is not None:
            with contextlib.suppress(KeyError, TypeError, ValueError):  # damaged: found anew below
                return _from_facts(known, lambda: _built(directory, tie))
        try:
            model = _built(directory, tie)
        except UserError:
            return describe_files(Checkpoint(directory))
        found = describe(model)
        keep_facts(path, tie, _as_facts(found))
        return found


def config_path(directory: Path) -> Path | None:
    """The config.json of a model that may be of a known class, None where there is none.

    Raises:
        UserError: it is no readable JSON, or says that the weights are quantised.
    """
    path = directory / "config.json"
    if not path.is_file():
        return None
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable configuration ({error})") from error
    if not isinstance(entries, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(entries).__name__}")
    if entries.get("quantization_config"):
        raise UserError(_quantised(directory))
    if "num_hops" in entries and "input_layers" in entries:
        raise UserError(
            f"{directory}: a compact export of a route, which only its own model code can run. Use the recipe in it "
            "(evomerge_recipe.yaml), or export the route as plain"
        )
    return path


@dataclass(frozen=True)
class ConfigFacts:
    """What a merge must know of a model's configuration alone.

    Attributes:
        model_type: transformers' name of the architecture.
        claims_tied: whether it says that the head is the token embeddings.
    """

    model_type: str
    claims_tied: bool


def config_facts(directory: Path) -> ConfigFacts | None:
    """Facts of the configuration in a directory, None where there is none of a known class.

    Raises:
        UserError: the configuration is no readable JSON, or says that the weights are quantised.
    """
    if (path := config_path(directory)) is None:
        return None
    if (known := kept_facts(path, "config")) is not None:
        with contextlib.suppress(KeyError):
            return ConfigFacts(str(known["model_type"]), bool(known["claims_tied"]))
    try:
        config = load_config(directory)
    except UserError:
        return None
    found = ConfigFacts(str(config.model_type), claims_tied(config))
    keep_facts(path, "config", asdict(found))
    return found


def _built(directory: Path, tie: bool | None) -> nn.Module:
    config = load_config(directory)
    if tie is not None:
        config.get_text_config().tie_word_embeddings = tie
        config.tie_word_embeddings = tie
    return build_on_meta(config, directory)


def _as_facts(architecture: Architecture) -> dict[str, Any]:
    names = [entry.name for entry in fields(Architecture) if entry.name not in ("slots", "stacks", "build")]
    facts = {name: getattr(architecture, name) for name in names}
    facts["slots"] = [[slot.name, slot.shape, slot.block, slot.component] for slot in architecture.slots]
    facts["stacks"] = [[stack.name, stack.start, stack.count] for stack in architecture.stacks]
    return facts


def _from_facts(facts: dict[str, Any], build: Callable[[], nn.Module]) -> Architecture:
    return Architecture(
        model_type=facts["model_type"],
        num_blocks=facts["num_blocks"],
        slots=tuple(Slot(name, tuple(shape), block, kind) for name, shape, block, kind in facts["slots"]),
        buffers=tuple(facts["buffers"]),
        tied=tuple((name, partner) for name, partner in facts["tied"]),
        is_tied=facts["is_tied"],
        optional=tuple(facts["optional"]),
        stacks=tuple(Stack(name, start, count) for name, start, count in facts["stacks"]),
        build=cache(build),
    )


def load_config(directory: Path) -> Any:
    """The transformers configuration in a directory, never running code from it.

    Raises:
        UserError: missing, unreadable, unknown to the installed transformers, or quantised.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        config_path(directory)  # says more of what is known to be no model for merging
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{directory}: transformers does not know this architecture ({reason})") from error
    if getattr(config, "quantization_config", None):
        raise UserError(_quantised(directory))
    return config


def claims_tied(config: Any) -> bool:
    """Whether a configuration says that the head is the token embeddings."""
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def _quantised(directory: Path) -> str:
    return f"{directory}: its weights are quantised; merging needs them in bfloat16, float16 or float32"


def model_factories(config: Any) -> tuple[Any, ...]:
    """What can build or load the model of a configuration: the class it names, so that heads are kept, else guesses."""
    import transformers

    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            wanted: Any = getattr(found, "config_class", None)
            if wanted is None or isinstance(config, wanted):
                return (found,)
    return transformers.AutoModelForCausalLM, transformers.AutoModel


def build_on_meta(config: Any, directory: Path) -> nn.Module:
    """The model of a configuration without memory for its weights.

    Raises:
        UserError: transformers cannot build it without remote code.
    """
    problems: list[str] = []
    for factory in model_factories(config):
        try:
            with torch.device("meta"):
                if hasattr(factory, "from_config"):
                    model: nn.Module = factory.from_config(config, trust_remote_code=False)
                else:
                    model = factory(config)
            return model
        except (
            ValueError,
            ImportError,
            AttributeError,
            KeyError,
            TypeError,
            RuntimeError,
            NotImplementedError,
        ) as error:
            problems.append((str(error).strip() or type(error).__name__).splitlines()[0][:200])
    raise UserError(f"{directory}: transformers cannot build a {config.model_type} model: {problems[0]}")


def describe(model: nn.Module) -> Architecture:
    """Structure of a model, usually one on the meta device."""
    stacks = module_stacks(model)
    components = Components(model, stacks)
    slots = tuple(
        Slot(name, tuple(parameter.shape), *components.of(name))
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
    )
    names = {name for name, _ in model.named_parameters()}
    merged = {slot.name for slot in slots}
    buffers = dict(model.named_buffers())
    copied = tuple(name for name in model.state_dict() if name not in merged and (name in buffers or name in names))
    tied = dict(_tied_pairs(model))
    config: Any = model.config
    return Architecture(
        model_type=str(config.model_type),
        num_blocks=sum(stack.count for stack in stacks),
        slots=slots,
        buffers=copied,
        tied=tuple(sorted(tied.items())),
        is_tied=bool(tied) and not any(name in names for name in tied),
        optional=tuple(slot.name for slot in slots if _may_be_missing(model, slot.name)),
        stacks=stacks,
        build=lambda: model,
    )


def describe_files(checkpoint: Checkpoint) -> Architecture:
    """Structure of files of no known class: names and shapes as stored, blocks from the numbers in names."""
    stacks = name_stacks(checkpoint.names)
    slots, copied = [], []
    for name in checkpoint.names:
        info = checkpoint.info(name)
        if info.is_number:
            slots.append(Slot(name, info.shape, *name_component(stacks, name, len(info.shape))))
        else:
            copied.append(name)
    count = sum(stack.count for stack in stacks)
    return Architecture(FILES_ONLY, count, tuple(slots), tuple(copied), (), False, stacks=stacks)


def _may_be_missing(model: nn.Module, name: str) -> bool:
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


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
