"""Walks tensors in chunks that stay in the cache, on as many threads as torch has been given.

Each chunk is computed by one thread from beginning to end. torch's own threads would meet at a barrier after every
operation, twenty times a chunk, and spin there: beside any other busy process that is ten times slower.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import Tensor

SCRATCH_ELEMENTS = 1 << 19  # fp32 temporaries of one thread (2 MiB): larger leaves the caches, smaller pays in dispatch
SMALLEST_CHUNK = 1 << 14  # less is not worth another thread
TORCH_GRAIN = 1 << 15  # torch computes fewer elements than this on the calling thread alone
DEVICE_CHUNK = 1 << 24  # elements per pass on an accelerator: bounds the temporaries, long enough to hide launches

Result = TypeVar("Result")
Kernel = Callable[[int, Tensor, list[Tensor], Sequence[Tensor]], None]

_local = threading.local()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def sweep(kernel: Kernel, out: Tensor, sources: Sequence[Tensor], num_buffers: int, num_hot: int) -> None:
    """Call ``kernel(start, piece of out, fp32 buffers, pieces of the sources)`` for every chunk.

    Args:
        kernel: fills its piece of ``out``; all its tensors are ``(c,)``, ``start`` is their flat index. It must treat
            every element alike, so that the result depends neither on the chunks nor on the threads.
        out: any shape and strides.
        sources: flat tensors of as many elements.
        num_buffers: how many buffers the kernel gets.
        num_hot: how many of them it uses at the same time, which should fit into the cache together.
    """
    whole = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)
    threads = torch.get_num_threads() if out.device.type == "cpu" and out.numel() >= TORCH_GRAIN else 1
    size = _chunk_size(out, num_hot, threads)
    chunks = deque(enumerate(zip(*(split(tensor, size) for tensor in (whole.view(-1), *sources)), strict=True)))

    def work() -> None:
        buffers = _buffers(num_buffers, min(size, out.numel()), out.device)
        with torch.no_grad():
            while chunks:
                try:
                    index, (target, *pieces) = chunks.popleft()
                except IndexError:  # another thread took the last one
                    return
                kernel(index * size, target, [buffer[: len(target)] for buffer in buffers], pieces)

    if threads == 1:
        work()
    else:
        futures = [_pool(threads).submit(work) for _ in range(min(threads, len(chunks)))]
        try:
            for future in futures:
                future.result()
        finally:  # nobody may write into out after this returns, whatever ended it
            chunks.clear()
            wait(futures)
    if whole is not out:
        out.copy_(whole)


def run_all(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """Results of the tasks, in their order, computed on as many threads as torch has been given."""
    threads = torch.get_num_threads()
    if threads == 1 or len(tasks) < 2:
        return [task() for task in tasks]
    return [future.result() for future in [_pool(threads).submit(task) for task in tasks]]


def split(tensor: Tensor, size: int) -> tuple[Tensor, ...]:
    """Views of ``size`` elements each, the last one shorter, at least one."""
    return tensor.tensor_split(tuple(range(size, len(tensor), size)))


def _chunk_size(out: Tensor, num_hot: int, threads: int) -> int:
    if out.device.type != "cpu":
        return DEVICE_CHUNK
    part = max(SMALLEST_CHUNK, -(-out.numel() // threads))
    return -(-min(part, SCRATCH_ELEMENTS // num_hot) // 1024) * 1024  # whole cache lines


def _buffers(count: int, size: int, device: torch.device) -> list[Tensor]:
    if device.type != "cpu":
        return list(torch.empty(count, size, dtype=torch.float32, device=device))
    kept: list[Tensor] = getattr(_local, "buffers", [])
    if len(kept) < count or len(kept[0]) < size:
        longest = max([size, *map(len, kept[:1])])
        kept = _local.buffers = [torch.empty(longest, dtype=torch.float32) for _ in range(max(count, len(kept)))]
    return [buffer[:size] for buffer in kept[:count]]


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads of this process on which torch uses no further threads."""
    key = (os.getpid(), threads)  # a fork inherits the table but not the threads
    if key not in _pools:
        everyone = threading.Barrier(threads)

        def start() -> None:
            torch.get_num_threads()  # a thread takes the default at its first question, and would forget what was set
            torch.set_num_threads(1)
            everyone.wait()

        pool = ThreadPoolExecutor(threads, thread_name_prefix="merge")
        for future in [pool.submit(start) for _ in range(threads)]:
            future.result()
        torch.set_num_threads(threads)  # the default of threads still to come, which start() changed
        _pools[key] = pool
    return _pools[key]
