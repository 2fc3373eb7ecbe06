"""Walks tensors in chunks, so that a method's fp32 temporaries stay small whatever the tensor's size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CPU_CHUNK = 1 << 17  # elements per pass: the temporaries stay in the cache
DEVICE_CHUNK = 1 << 24  # on an accelerator: bounds the temporaries, long enough to hide launches

Kernel = Callable[[int, Tensor, list[Tensor], Sequence[Tensor]], None]


@torch.no_grad()
def sweep(kernel: Kernel, out: Tensor, sources: Sequence[Tensor], num_buffers: int) -> None:
    """Call ``kernel(start, piece of out, fp32 buffers, pieces of the sources)`` for every chunk.

    Args:
        kernel: fills its piece of ``out``; all its tensors are ``(c,)``, ``start`` is their flat index. It must treat
            every element alike, so that the result does not depend on the chunks.
        out: any shape and strides.
        sources: flat tensors of as many elements.
        num_buffers: how many buffers the kernel gets.
    """
    whole = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)
    size = min(out.numel(), CPU_CHUNK if out.device.type == "cpu" else DEVICE_CHUNK)
    buffers = list(torch.empty(num_buffers, size, dtype=torch.float32, device=out.device))
    chunks = zip(*(split(tensor, size) for tensor in (whole.view(-1), *sources)), strict=True)
    for index, (target, *pieces) in enumerate(chunks):
        kernel(index * size, target, [buffer[: len(target)] for buffer in buffers], pieces)
    if whole is not out:
        out.copy_(whole)


def split(tensor: Tensor, size: int) -> tuple[Tensor, ...]:
    """Views of ``size`` elements each, the last one shorter, at least one."""
    return tensor.tensor_split(tuple(range(size, len(tensor), size))) if size else (tensor,)
