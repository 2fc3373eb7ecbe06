"""The elementwise methods as one compiled loop on the CPU: every weight is read once and written once.

torch makes a pass over memory for each operation and comes back to the interpreter after it; these kernels do all the
operations on a block that stays in the first-level cache, without the interpreter's lock, so that the threads of a
tensor never wait for each other. Arithmetic is fp32 without fused operations, in the order of the experts:
bits depend neither on blocks nor on threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from evomerge.methods import kernels
from evomerge.methods.cores import run_ranges
from evomerge.methods.kernels import BFLOAT16, BLOCK, FLOAT16, FLOAT32, NOWHERE
from evomerge.methods.trim import Rule

_FORMATS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
_MODES = {"sum": kernels.SUM, "elected_sum": kernels.ELECTED_SUM, "elected_mean": kernels.ELECTED_MEAN}

Combination = Literal["sum", "elected_sum", "elected_mean"]


@dataclass(frozen=True)
class Part:
    """One expert's part in a merge of task vectors.

    Attributes:
        expert: flat ``(n,)``.
        factor: multiplies the trimmed task vector.
        share: what ELECTED_MEAN divides by where the expert agrees.
        rule: what is dropped.
    """

    expert: Tensor
    factor: float
    share: float
    rule: Rule


def fits(out: Tensor, sources: Sequence[Tensor]) -> bool:
    """Whether the kernels take these tensors: bf16, fp16 or fp32 in the memory of the CPU, the sources without gaps."""
    return all(source.is_contiguous() for source in sources) and all(
        tensor.dtype in _FORMATS and tensor.device.type == "cpu" and tensor.data_ptr() % tensor.element_size() == 0
        for tensor in (out, *sources)
    )


def weighted_sum(out: Tensor, sources: Sequence[Tensor], weights: Sequence[float]) -> None:
    """Write ``Σ weights[i] · sources[i]``.

    Args:
        out: any shape and strides.
        sources: flat tensors ``(n,)`` that ``fits`` takes.
        weights: one for each source.
    """
    places, formats = _places(sources), _formats(sources)
    numbers = np.array(weights, dtype=np.float32)

    def write(place: Any, format_: int) -> None:
        run_ranges(
            lambda first, last: kernels.weighted_sum(place, format_, places, formats, numbers, first, last),
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
    mode = _MODES[combine]
    rules = [part.rule for part in parts]
    experts = [part.expert for part in parts]
    codes = [0 if rule.codes is None else rule.codes.data_ptr() for rule in rules]
    places = np.stack([_places([base, *experts]), np.array([0, *codes], dtype=np.uint64)])
    columns = ([0, *(getattr(rule, name) for rule in rules)] for name in ("kind", "cut", "upper_cut"))
    integers = np.array([_formats([base, *experts]), *columns], dtype=np.int64)
    rows = ([part.factor, part.share, part.rule.limit, part.rule.upper] for part in parts)
    numbers = np.array([[scale, 0.0, 0.0, 0.0], *rows], dtype=np.float32)

    def write(place: Any, format_: int) -> None:
        run_ranges(
            lambda first, last: kernels.merge_deltas(
                place, format_ + 10 * mode, places, integers, numbers, first, last
            ),
            out.numel(),
            BLOCK,
        )

    _into(out, write)


def copy(out: Tensor | None, source: Tensor) -> bool:
    """Write ``source`` into ``out``, if there is one, and return whether all of it is finite.

    Args:
        out: contiguous, of as many elements, such as ``fits`` takes.
        source: the same.
    """
    place, format_ = np.uint64(source.data_ptr()), _FORMATS[source.dtype]
    target = np.uint64(0) if out is None else np.uint64(out.data_ptr())
    target_format = NOWHERE if out is None else _FORMATS[out.dtype]
    finite = []
    run_ranges(
        lambda first, last: finite.append(kernels.copy(target, target_format, place, format_, first, last)),
        source.numel(),
        BLOCK,
    )
    if out is not None:
        _tell_autograd(out)
    return all(finite)


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
    whole = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype)
    write(np.uint64(whole.data_ptr()), _FORMATS[out.dtype])
    _tell_autograd(whole)
    if whole is not out:
        out.copy_(whole)
