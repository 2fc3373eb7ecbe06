"""Keeps what the first hops of a route gave for each input, for the next route that begins with the same hops.

Candidates of one population often share their first hops and are scored on the same prompts. What is kept belongs to
the route that runs now: when another one starts, all that lies behind the hops both have in common is dropped. A
forward pass begins at the last hop boundary that is kept, and gives the same bits as one that begins at the embeddings.

B rows, L tokens, H hidden size.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.engine.hop_shells import RouteList
from evomerge.terms import HopCounts

DEFAULT_BYTES = 512 * 10**6
# What decides the hidden states, and what only matters behind the blocks. Anything else that is given: nothing is kept.
INPUTS = ("input_ids", "attention_mask", "position_ids")
HARMLESS = ("past_key_values", "use_cache", "logits_to_keep", "return_dict")
# Hidden states of every hop are kept, or, where memory does not suffice, of every second, fourth, eighth.
MAX_STRIDE = 8


@dataclass
class _Prompt:
    """What is kept of one input.

    Attributes:
        states: ``(B, L, H)`` behind a hop, by its index.
        key_values: keys and values of each hop from the first on, where the pass filled a cache.
        fills_cache: whether it did; None = not known yet.
    """

    states: dict[int, Tensor] = field(default_factory=dict)
    key_values: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    fills_cache: bool | None = None

    def resume_at(self, longest: int) -> int:
        """How many of the first hops need not run."""
        known = min(longest, len(self.key_values)) if self.fills_cache else longest
        return max((index + 1 for index in self.states if index < known), default=0)


class PrefixCache:
    """Hidden states at hop boundaries of a live model, with the keys and values before them.

    Attributes:
        counts: work done and spared since ``take_counts``.
        num_bytes: held now.
    """

    def __init__(self, model: Any, blocks: RouteList, cap_bytes: int) -> None:
        """Watch the model's forward passes.

        Args:
            model: the live model.
            blocks: its list of hops.
            cap_bytes: most that is kept; 0 keeps nothing.
        """
        self.counts = HopCounts()
        self.num_bytes = 0
        self._model, self._blocks, self._cap = model, blocks, cap_bytes
        self._signature = inspect.signature(model.forward)
        self._path: list[Hashable] | None = None  # of the running route, None outside routes
        self._start: Hashable = None
        self._prompts: dict[bytes, _Prompt] = {}
        self._stride = 1
        self._is_usable = cap_bytes > 0
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after, always_call=True)

    def start(self, path: Sequence[Hashable], start: Hashable) -> None:
        """A route runs from now on.

        Args:
            path: names each hop: whatever decides what it does.
            start: names what lies before the hops.
        """
        same = 0
        if self._path is not None and start == self._start:
            while same < min(len(path), len(self._path)) and path[same] == self._path[same]:
                same += 1
        self._path, self._start = list(path), start
        for key, prompt in list(self._prompts.items()):
            self._cut(prompt, same)
            if not prompt.states:
                self._prompts.pop(key)
                self._cut(prompt, 0)

    def stop(self) -> None:
        """No route runs any more; keep nothing."""
        self._path = None
        self.clear()

    def clear(self) -> None:
        """Let go of all that is kept."""
        self._prompts.clear()
        self.num_bytes = 0

    def take_counts(self) -> HopCounts:
        """The work since the last call."""
        counts, self.counts = self.counts, HopCounts()
        return counts

    def _cut(self, prompt: _Prompt, length: int) -> None:
        """Keep what the first hops gave."""
        for index in [index for index in prompt.states if index >= length]:
            self.num_bytes -= prompt.states.pop(index).nbytes
        self.num_bytes -= sum(keys.nbytes + values.nbytes for keys, values in prompt.key_values[length:])
        del prompt.key_values[length:]

    def _before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._blocks.show(None)
        if self._path is None:
            return
        given = {name: value for name, value in self._bound(args, kwargs).items() if value is not None}
        ids = given.get("input_ids")
        if not isinstance(ids, Tensor):
            return
        resume = 0
        if self._is_usable and self._is_fresh(given):
            prompt = self._prompts.setdefault(self._key(given), _Prompt())
            resume = prompt.resume_at(len(self._path))
            self._blocks.show(_Pass(self, prompt, self._blocks.hops, resume).runners)
        hops = len(self._path)
        self.counts += HopCounts((hops - resume) * ids.numel(), resume * ids.numel())

    def _after(self, *_: Any) -> None:
        self._blocks.show(None)

    def _bound(self, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if not args:
            return kwargs
        bound = self._signature.bind_partial(*args, **kwargs).arguments
        return {**bound, **bound.pop("kwargs", {})}

    def _is_fresh(self, given: dict[str, Any]) -> bool:
        """Whether a pass reads whole prompts and nothing but what the key tells decides its hidden states."""
        if torch.is_grad_enabled() or self._model.training:
            return False
        if any(name not in INPUTS and name not in HARMLESS for name in given):
            return False
        cache = given.get("past_key_values")
        return cache is None or (type(cache).__name__ == "DynamicCache" and cache.get_seq_length() == 0)

    def _key(self, given: dict[str, Any]) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((given.get("use_cache"), "past_key_values" in given)).encode())
        for name in INPUTS:
            value = given.get(name)
            if value is not None:
                digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
                digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.digest()

    def has_room(self, num_bytes: int) -> bool:
        """Whether so much more can be kept, after thinning out what is kept already."""
        longest = min(MAX_STRIDE, len(self._path or ()) // 2)
        while self.num_bytes + num_bytes > self._cap and 2 * self._stride <= longest:
            self._stride *= 2
            for prompt in self._prompts.values():
                for index in [index for index in prompt.states if not self.is_kept(index)]:
                    self.num_bytes -= prompt.states.pop(index).nbytes
        return self.num_bytes + num_bytes <= self._cap

    def is_kept(self, index: int) -> bool:
        """Whether the hidden states behind a hop are worth their memory."""
        return (index + 1) % self._stride == 0

    def give_up(self) -> None:
        """The blocks hand on more than hidden states: keep nothing from now on."""
        self._is_usable = False
        self.clear()


class _Pass:
    """One forward pass over whole prompts.

    Attributes:
        runners: what runs in place of each hop.
    """

    def __init__(self, cache: PrefixCache, prompt: _Prompt, hops: Sequence[nn.Module], resume: int) -> None:
        self._cache, self._prompt, self._resume = cache, prompt, resume
        self._keeps = True
        self.runners = [
            _Runner(self._skip if index < resume else self._run, index, hop) for index, hop in enumerate(hops)
        ]

    def _skip(self, index: int, hop: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        filled = _cache_of(args, kwargs)
        assert (filled is not None) == self._prompt.fills_cache
        if filled is not None:
            filled.update(*self._prompt.key_values[index], index)
        if index + 1 < self._resume:
            return args[0] if args else kwargs["hidden_states"]
        return self._prompt.states[index].clone()  # no one may change what is kept

    def _run(self, index: int, hop: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        result = hop(*args, **kwargs)
        if not self._keeps:
            return result
        if not isinstance(result, Tensor) or any(isinstance(value, dict | list) for value in kwargs.values()):
            self._cache.give_up()
            self._keeps = False
            return result
        filled = _cache_of(args, kwargs)
        self._prompt.fills_cache = filled is not None
        self._keeps = self._keep(index, result, filled)
        return result

    def _keep(self, index: int, result: Tensor, filled: Any) -> bool:
        """Keep what a hop gave; False where that and all behind it cannot be kept."""
        prompt, cache = self._prompt, self._cache
        if filled is not None and index == len(prompt.key_values):
            if index >= len(filled.layers):
                return False
            keys, values = filled.layers[index].keys, filled.layers[index].values
            # A window that is full has dropped the first ones.
            if keys.shape[-2] != result.shape[1] or not cache.has_room(keys.nbytes + values.nbytes):
                return False
            prompt.key_values.append((keys, values))
            cache.num_bytes += keys.nbytes + values.nbytes
        if index not in prompt.states and cache.is_kept(index):
            if not cache.has_room(result.nbytes):
                return False
            if cache.is_kept(index):
                prompt.states[index] = result.clone()
                cache.num_bytes += result.nbytes
        return True


class _Runner:
    """Stands in for one hop during one pass."""

    def __init__(self, run: Any, index: int, hop: nn.Module) -> None:
        self._run, self._index, self._hop = run, index, hop

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._index, self._hop, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hop, name)


def _cache_of(args: Any, kwargs: dict[str, Any]) -> Any:
    """The key-value cache among a block's arguments."""
    from transformers.cache_utils import Cache

    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
