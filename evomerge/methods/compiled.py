"""The elementwise methods as one compiled loop on the CPU: every weight is read once and written once.

torch makes a pass over memory for each operation and comes back to the interpreter after it; these kernels do all the
operations on a block that stays in the first-level cache, without the interpreter's lock, so that the threads of a
tensor never wait for each other. Arithmetic is fp32 without fused operations, in the order of the experts:
bits depend neither on blocks nor on threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from evomerge.methods import kernels
from evomerge.methods.cores import run_ranges
from evomerge.methods.kernels import BFLOAT16, BLOCK, FLOAT16, FLOAT32, UPPER_BFLOAT16
from evomerge.methods.trim import ALL, MAGNITUDE, RANDOM, Rule

_FORMATS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}

Combination = Literal["sum", "elected_sum", "elected_mean"]


@dataclass(frozen=True)
class Part:
    """One expert's part in a merge of task vectors.

    Attributes:
        expert: flat ``(n,)``.
        factor: multiplies the trimmed task vector.
        share: what ``elected_mean`` divides by where the expert agrees.
        rule: what is dropped.
    """

    expert: Tensor
    factor: float
    share: float
    rule: Rule


def fits(out: Tensor, sources: Sequence[Tensor]) -> bool:
    """Whether the kernels take these tensors: bf16, fp16 or fp32 in the memory of the CPU, the sources without gaps."""
    for tensor in (out, *sources):
        if not (tensor.is_cpu and tensor.dtype in _FORMATS) or tensor.data_ptr() % tensor.element_size():
            return False
        if tensor is not out and not tensor.is_contiguous():
            return False
    return True


def weighted_sum(out: Tensor, sources: Sequence[Tensor], weights: Sequence[float]) -> None:
    """Write ``Σ weights[i] · sources[i]``.

    Args:
        out: any shape and strides.
        sources: flat tensors ``(n,)`` that ``fits`` takes.
        weights: one for each source.
    """
    is_three = 2 <= len(sources) <= 3 and all(source.dtype == torch.bfloat16 for source in sources)
    if is_three and len(sources) == 2:
        sources, weights = [*sources, sources[0]], [*weights, 0.0]
    places, formats = _places(sources), _formats(sources)
    numbers = np.array(weights, dtype=np.float32)

    def write(place: Any, format_: int) -> None:
        modes = np.array([format_, is_three], dtype=np.int64)
        run_ranges(
            lambda first, last: kernels.weighted_sum(place, modes, places, formats, numbers, first, last),
            out.numel(),
            BLOCK,
        )

    _into(out, write)


def merge_deltas(combine: Combination, out: Tensor, base: Tensor, parts: Sequence[Part], scale: float) -> None:
    """Write ``base + scale · combination of factor · trim(expert - base)``.

    Args:
        combine: ``sum`` adds up, ``elected_sum`` and ``elected_mean`` are TIES without and with normalisation.
        out: any shape and strides.
        base: ``(n,)``; base and experts such as ``fits`` takes.
        parts: the experts.
        scale: multiplies the combination.
    """
    is_three = len(parts) <= 3 and _are_alike(base, parts)
    if is_three:  # the base itself, times 0, stands in for experts that are not there
        parts = [*parts, *(replace(parts[0], expert=base, factor=0.0, share=0.0) for _ in range(3 - len(parts)))]
    rules, experts = [part.rule for part in parts], [part.expert for part in parts]
    codes = [0 if rule.codes is None else rule.codes.data_ptr() for rule in rules]
    places = np.stack([_places([base, *experts]), np.array([0, *codes], dtype=np.uint64)])
    columns = ([0, *(getattr(rule, name) for rule in rules)] for name in ("kind", "cut", "upper_cut"))
    integers = np.array([_formats([base, *experts]), *columns], dtype=np.int64)
    with_shares = combine == "elected_mean"
    rows = ([part.factor, part.share if with_shares else 0.0, part.rule.limit, part.rule.upper] for part in parts)
    numbers = np.array([[scale, 0.0, 0.0, 0.0], *rows], dtype=np.float32)

    def write(place: Any, format_: int) -> None:
        modes = np.array([format_, combine != "sum", is_three], dtype=np.int64)
        run_ranges(
            lambda first, last: kernels.merge_deltas(place, modes, places, integers, numbers, first, last),
            out.numel(),
            BLOCK,
        )

    _into(out, write)


def _are_alike(base: Tensor, parts: Sequence[Part]) -> bool:
    """Whether one loop can read all of them; see the kernel's ``modes``."""
    kinds = {part.rule.kind for part in parts}
    is_bf16 = all(tensor.dtype == torch.bfloat16 for tensor in (base, *(part.expert for part in parts)))
    return is_bf16 and (kinds == {RANDOM} or kinds <= {ALL, MAGNITUDE})


def is_finite(tensor: Tensor) -> bool:
    """Whether all of a tensor that ``fits`` takes is finite."""
    place, format_ = np.uint64(tensor.data_ptr()), _FORMATS[tensor.dtype]
    found: list[bool] = []
    run_ranges(lambda first, last: found.append(kernels.is_finite(place, format_, first, last)), tensor.numel(), BLOCK)
    return all(found)


def _tell_autograd(written: Tensor) -> None:
    """Torch did not see the write; whoever watches the version of a tensor should."""
    if not written.is_inference():
        increment_version(written)


def _places(tensors: Sequence[Tensor]) -> npt.NDArray[np.uint64]:
    return np.array([tensor.data_ptr() for tensor in tensors], dtype=np.uint64)


def _formats(tensors: Sequence[Tensor]) -> npt.NDArray[np.int64]:
    return np.array([_FORMATS[tensor.dtype] for tensor in tensors], dtype=np.int64)


def _into(out: Tensor, write: Callable[[Any, int], None]) -> None:
    """Let ``write(place, format)`` fill ``out``, by way of a tensor without gaps if it has some."""
    if _is_upper(out):
        write(np.uint64(out.data_ptr() - 2), UPPER_BFLOAT16)
        _tell_autograd(out)
        return
    whole = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype)
    write(np.uint64(whole.data_ptr()), _FORMATS[out.dtype])
    _tell_autograd(whole)
    if whole is not out:
        out.copy_(whole)


def _is_upper(out: Tensor) -> bool:
    """Whether these are the upper halves of the words of an fp32 tensor without gaps: bf16 that needs no widening."""
    if out.dtype != torch.bfloat16 or out.data_ptr() % 4 != 2:
        return False
    expected = 2
    for size, stride in zip(reversed(out.shape), reversed(out.stride()), strict=True):
        if stride != expected and size != 1:
            return False
        expected *= size
    return True
