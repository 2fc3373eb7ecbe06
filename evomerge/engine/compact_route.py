"""A route as a checkpoint that stores each block once, with model code that runs the hops.

The format follows the published data-flow merges: blocks numbered by first use, ``num_hops`` in the configuration, and
two tensors beside the weights, ``input_layers`` (which stored block each hop runs) and ``input_scales``. The
configuration repeats them exactly, and it is what the model code goes by: tensors are rounded with the weights. The
code is a subclass of the model's own transformers class (``modeling_route.py``), with ``hop_shells.py`` beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

import torch

from evomerge.engine import hop_shells
from evomerge.engine.architecture import Architecture
from evomerge.engine.output_plan import OutputUnit
from evomerge.engine.residual_anatomy import residual_anatomy
from evomerge.engine.shard_writer import TensorEntry
from evomerge.errors import UserError
from evomerge.recipes.recipe import Hop, Route

MODELING_NAME = "modeling_route.py"
SHELLS_NAME = "hop_shells.py"
MODELING = Template('''"""A $base whose blocks run along a route: some several times, in any order, with scaled inputs.

Written by evomerge. Load it with ``trust_remote_code=True``. ``config.json`` holds the route: hop number k runs stored
block ``input_layers[k]`` and scales with ``input_scales[k]`` what enters it (``scale_target: stream``), or what the hop
before added last to the hidden states (``branch``).
"""

import torch
from transformers import $base, $base_config

from .hop_shells import HopStep, RouteList


class $config($base_config):
    """The configuration: ``num_hidden_layers`` and lists per layer count hops, as caches and masks do."""

    model_type = "$model_type"


class $model($base):
    """The model. What it stores of each block is stored once."""

    config_class = $config

    def __init__(self, config):
        """Build one block for each hop, then keep those that are stored."""
        super().__init__(config)
        parent, _, name = config.blocks.rpartition(".")
        owner = self.get_submodule(parent)
        built, layers = list(getattr(owner, name)), list(config.input_layers)
        blocks = RouteList([built[layers.index(number)] for number in range(max(layers) + 1)])
        setattr(owner, name, blocks)
        steps = [HopStep(blocks.stored[number], scale) for number, scale in zip(layers, config.input_scales)]
        blocks.run(steps, config.scale_target, config.output_scale, config.last_write)
        owner.register_buffer("input_layers", torch.tensor(layers))
        owner.register_buffer("input_scales", torch.tensor(config.input_scales))
''')


@dataclass(frozen=True)
class CompactRoute:
    """What a compact checkpoint holds beside its weights.

    Attributes:
        route: through every block once, unscaled: what the stored blocks are.
        config: entries of its config.json.
        tensors: name to tensor.
        files: name to text.
    """

    route: Route
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    files: dict[str, str]

    @property
    def units(self) -> list[OutputUnit]:
        """The tensors, as they are written."""
        return [
            OutputUnit((TensorEntry(name, tensor.dtype, tuple(tensor.shape)),), given=tensor)
            for name, tensor in self.tensors.items()
        ]


def compact_route(route: Route, architecture: Architecture) -> CompactRoute:
    """How a route is written with each block stored once.

    Args:
        route: the path.
        architecture: of the model that has one block for each hop.

    Raises:
        UserError: transformers knows no class for the model, or with ``branch`` its blocks cannot be understood.
    """
    model = architecture.model
    if model is None:
        raise UserError("a compact export needs a model class that transformers knows; this model has none")
    stack = architecture.stacks[0].name
    stored = list(dict.fromkeys((hop.model, hop.block) for hop in route.hops))
    layers = [stored.index((hop.model, hop.block)) for hop in route.hops]
    scales = [float(hop.scale) for hop in route.hops]
    is_branch = route.scale_target == "branch" and route.is_scaled
    base, base_config = type(model).__name__, type(model.config).__name__
    names = {
        "base": base, "base_config": base_config, "model": f"Routed{base}", "config": f"Routed{base_config}",
        "model_type": f"routed_{architecture.model_type}",
    }  # fmt: skip
    module = MODELING_NAME.removesuffix(".py")
    config = {
        "architectures": [names["model"]],
        "auto_map": {"AutoConfig": f"{module}.{names['config']}", _auto_class(base): f"{module}.{names['model']}"},
        "model_type": names["model_type"],
        "num_hops": len(layers),
        "input_layers": layers,
        "input_scales": scales,
        "output_scale": float(route.output_scale),
        "scale_target": route.scale_target,
        "blocks": stack,
        "last_write": residual_anatomy(model, stack).writes[-1] if is_branch else None,
    }
    owner = stack.rpartition(".")[0]
    prefix = f"{owner}." if owner else ""
    tensors = {f"{prefix}input_layers": torch.tensor(layers), f"{prefix}input_scales": torch.tensor(scales)}
    files = {MODELING_NAME: MODELING.substitute(names), SHELLS_NAME: Path(hop_shells.__file__).read_text()}
    once = replace(route, hops=tuple(Hop(*entry) for entry in stored), scale_target="stream", output_scale=1.0)
    return CompactRoute(once, config, tensors, files)


def _auto_class(base: str) -> str:
    for ending in ("ForCausalLM", "ForConditionalGeneration", "ForSequenceClassification", "ForMaskedLM"):
        if base.endswith(ending):
            return {"ForConditionalGeneration": "AutoModelForImageTextToText"}.get(ending, f"AutoModel{ending}")
    return "AutoModelForCausalLM" if base.endswith("LMHeadModel") else "AutoModel"
