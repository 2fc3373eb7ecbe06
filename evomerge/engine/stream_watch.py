"""One run of a probe model, watched: what entered and left every module, as far as it has the size of the stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.engine.probe_model import ProbeModel


@dataclass
class Seen:
    """What went through one module: tensors the size of the stream.

    Attributes:
        module: the module.
        inputs: what it was given, in the shapes it was given in.
        output: what it gave, flattened; None where that is something else.
        order: place among the modules by the time they were done; -1 where it was not done.
    """

    module: nn.Module
    inputs: list[Tensor]
    output: Tensor | None = None
    order: int = -1


@dataclass
class StreamWatch:
    """What one run of the model showed.

    Attributes:
        embedded: what the model gave the block, flattened.
        stream_in: what entered the block: the same with every token multiplied by a number of its own.
        stream_out: what left it.
        inside: by module path inside the block.
        outside: by module path in the model, of innermost modules outside the block.
    """

    embedded: Tensor = field(default_factory=lambda: torch.empty(0))
    stream_in: Tensor = field(default_factory=lambda: torch.empty(0))
    stream_out: Tensor = field(default_factory=lambda: torch.empty(0))
    inside: dict[str, Seen] = field(default_factory=dict)
    outside: dict[str, Seen] = field(default_factory=dict)
    done: int = 0

    def takes(self, value: Any) -> bool:
        """Whether a value has the size of the stream."""
        is_number = isinstance(value, Tensor) and value.is_floating_point()
        return is_number and 0 < value.numel() == self.stream_in.numel()


def watch(probe: ProbeModel, stack_name: str, input_scale: float = 1.0) -> StreamWatch:
    """Run the model and note what went through its modules.

    Args:
        probe: the model.
        stack_name: module path of its list of blocks.
        input_scale: what the block's input is multiplied by, beside a number of its own for each token.
    """
    found, prefix = StreamWatch(), f"{stack_name}.0."

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        stream = args[0] if args else kwargs["hidden_states"]
        found.embedded = stream.detach().flatten().clone()
        # Tokens of different size, so that no norm is by chance the identity on a stream that is normal already.
        stream = stream * torch.linspace(0.5, 1.5, stream.shape[-2]).unsqueeze(-1) * input_scale
        found.stream_in = stream.detach().flatten().clone()
        return ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        found.stream_out = first(output).detach().flatten().clone()

    hooks = [probe.block.register_forward_pre_hook(enter, with_kwargs=True)]
    for name, module in probe.model.named_modules():
        is_inside = name.startswith(prefix)
        if is_inside or not any(True for _ in module.children()):
            place = found.inside if is_inside else found.outside
            hooks += _record(found, place, name.removeprefix(prefix), module)
    hooks.append(probe.block.register_forward_hook(leave))
    try:
        probe.run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def first(output: Any) -> Any:
    """What a module gives, or the first thing where it gives several."""
    return output[0] if isinstance(output, tuple | list) and output else output


def _record(found: StreamWatch, place: dict[str, Seen], name: str, module: nn.Module) -> list[Any]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [value for value in (*args, *kwargs.values()) if found.takes(value)]
        place[name] = Seen(module, [value.detach().clone() for value in given])

    def after(_: nn.Module, __: Any, output: Any) -> None:
        place[name].order, found.done = found.done, found.done + 1
        if found.takes(first(output)):
            place[name].output = first(output).detach().flatten().clone()

    return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
