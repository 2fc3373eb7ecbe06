"""Blocks of a model run in any order, any number of times, without a copy of a single weight.

This file needs nothing but torch: a checkpoint that stores each block once carries it along as its model code.

A ``RouteList`` takes the place of a model's list of blocks. What it stores stays what it was (names in ``state_dict``,
what ``.to`` and ``parameters`` see); iterating, indexing, slicing and ``len`` give hops in running order instead. A hop
is a thin shell: a copy of the block's module object and of those inside that know their place in the key-value cache
(``layer_idx``), all sharing the stored block's dictionaries of parameters and buffers.

    blocks = RouteList.take_place(model, "model.layers")
    blocks.run([HopStep(blocks.stored[0]), HopStep(blocks.stored[1], 0.5), HopStep(blocks.stored[0])])
    set_depth(model.config, 3, {"layer_types": [...]})   # the model's loop and its cache count hops
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

CACHE_SLOT = "layer_idx"


@dataclass(frozen=True)
class HopStep:
    """One step of a route.

    Attributes:
        block: the stored block that runs.
        scale: of its input, see ``RouteList.run``.
    """

    block: nn.Module
    scale: float = 1.0


class RouteList(nn.ModuleList):
    """A list of stored blocks that shows hops; the stored blocks themselves until ``run`` is called."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        """Store blocks; each keeps its number as its name."""
        super().__init__()
        self._hops: list[nn.Module] = []
        self._shown: Sequence[Any] | None = None
        self._shells: dict[int, list[_Shell]] = {}  # by id of the block, which its shells keep alive
        for number, block in enumerate(blocks):
            self.add_module(str(number), block)
        self._hops = self.stored

    @classmethod
    def take_place(cls, model: nn.Module, name: str) -> RouteList:
        """Put a route list where a model has its list of blocks.

        Args:
            model: the model.
            name: module path of the list (``model.layers``).
        """
        parent, _, attribute = name.rpartition(".")
        owner = model.get_submodule(parent)
        blocks = cls(list(getattr(owner, attribute)))
        setattr(owner, attribute, blocks)
        return blocks

    @property
    def stored(self) -> list[nn.Module]:
        """The stored blocks by number."""
        return [block for block in self._modules.values() if block is not None]

    @property
    def hops(self) -> list[nn.Module]:
        """The modules of the hops in running order."""
        return self._hops

    def run(
        self,
        steps: Sequence[HopStep],
        scale_target: str = "stream",
        output_scale: float = 1.0,
        last_write: str | None = None,
    ) -> None:
        """Show these hops from now on.

        Args:
            steps: the route; its blocks need not be stored in this list.
            scale_target: ``stream``: a scale multiplies the hidden states that enter its hop. ``branch``: it multiplies
                what the last write to the residual stream of the hop before added, and at the first hop what enters.
            output_scale: of the hidden states behind the last hop.
            last_write: with ``branch``, the name inside a block of the module whose output is that last write.
        """
        used: dict[int, int] = {}
        hops = []
        in_branch = scale_target == "branch"
        for index, step in enumerate(steps):
            pool = self._shells.setdefault(id(step.block), [])
            count = used.get(id(step.block), 0)
            used[id(step.block)] = count + 1
            if count == len(pool):
                pool.append(_Shell(step.block, last_write))
            shell = pool[count]
            if in_branch and shell.last_write != last_write:
                shell = pool[count] = _Shell(step.block, last_write)
            is_last = index + 1 == len(steps)
            entry = 1.0 if in_branch and index else step.scale
            write = steps[index + 1].scale if in_branch and not is_last else 1.0
            hops.append(shell.placed(index, entry, output_scale if is_last else 1.0, write))
        self._hops, self._shown = hops, None

    def reset(self) -> None:
        """Show the stored blocks again."""
        self._hops, self._shown = self.stored, None

    def show(self, modules: Sequence[Callable[..., Any]] | None) -> None:
        """Let something else than the hops run for a while, one thing for each hop; None = the hops again."""
        self._shown = modules

    def train(self, mode: bool = True) -> RouteList:
        """As for any module; shells follow."""
        super().train(mode)
        for shell in (shell for pool in self._shells.values() for shell in pool):
            shell.module.train(mode)
        return self

    def __len__(self) -> int:
        return len(self._hops)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._hops if self._shown is None else self._shown)

    def __getitem__(self, index: Any) -> Any:
        return (self._hops if self._shown is None else self._shown)[index]


def set_depth(config: Any, depth: int, lists: Mapping[str, Sequence[Any]]) -> None:
    """Let a transformers configuration tell of another number of blocks.

    Args:
        config: a model's configuration; that of its language model is changed.
        depth: number of blocks.
        lists: what it lists per block (``layer_types``), for the new blocks.
    """
    text = config.get_text_config()
    text.num_hidden_layers = depth
    for name, value in lists.items():
        setattr(text, name, list(value))


class _Shell:
    """A block's stand-in at one hop: it has a place of its own and may scale what goes in and out."""

    def __init__(self, block: nn.Module, last_write: str | None) -> None:
        self.block, self.last_write = block, last_write
        apart = _paths_to_copy(block, last_write)
        self.module = _thin_copy(block, "", apart)
        self._placed = [module for module in self.module.modules() if isinstance(_slot(module), int)]
        self._write = None if last_write is None else self.module.get_submodule(last_write)

    def placed(self, index: int, entry: float, exit: float, write: float) -> nn.Module:
        """The module, at a hop's place and with its scales."""
        for module in self._placed:
            module.__dict__[CACHE_SLOT] = index
        _scale(self.module, entry, exit)
        if self._write is not None:
            _scale(self._write, 1.0, write)
        return self.module


class _ScaledForward:
    """Stands in for the forward of one shell's module."""

    def __init__(self, module: nn.Module, entry: float, exit: float) -> None:
        self._module, self._entry, self._exit = module, entry, exit

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._entry != 1:
            if args:
                args = (args[0] * self._entry, *args[1:])
            else:
                kwargs["hidden_states"] = kwargs["hidden_states"] * self._entry
        result = type(self._module).forward(self._module, *args, **kwargs)
        if self._exit == 1:
            return result
        return (result[0] * self._exit, *result[1:]) if isinstance(result, tuple) else result * self._exit


def _scale(module: nn.Module, entry: float, exit: float) -> None:
    if entry == 1 and exit == 1:
        module.__dict__.pop("forward", None)
    else:
        module.__dict__["forward"] = _ScaledForward(module, entry, exit)


def _slot(module: nn.Module) -> Any:
    return module.__dict__.get(CACHE_SLOT)


def _paths_to_copy(block: nn.Module, last_write: str | None) -> set[str]:
    """The modules inside a block that hops cannot share, and all that contain them."""
    wanted = [name for name, module in block.named_modules() if isinstance(_slot(module), int)]
    wanted += [] if last_write is None else [last_write]
    paths = {""}
    for name in wanted:
        parts = name.split(".")
        paths.update(".".join(parts[: count + 1]) for count in range(len(parts)))
    return paths


def _thin_copy(module: nn.Module, path: str, apart: set[str]) -> nn.Module:
    copied = object.__new__(type(module))
    copied.__dict__.update(module.__dict__)
    copied.__dict__.pop("forward", None)  # one bound to the stored module would run that one
    children = {}
    for name, child in module._modules.items():
        inner = f"{path}.{name}" if path else name
        children[name] = _thin_copy(child, inner, apart) if child is not None and inner in apart else child
    copied.__dict__["_modules"] = children
    return copied
