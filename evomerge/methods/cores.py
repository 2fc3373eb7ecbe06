"""Threads for merging on a CPU: as many as torch has been given, each computing on its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

SMALLEST_PART = 1 << 15  # elements; fewer are not worth waking a thread

Result = TypeVar("Result")

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def run_ranges(function: Callable[[int, int], None], size: int, multiple: int) -> None:
    """Call ``function(start, end)`` so that the ranges cover ``size`` elements once, and return when all are done.

    Args:
        function: releases the interpreter's lock for most of its time; must not use torch's threads.
        size: how many elements.
        multiple: of which all starts are.
    """
    threads = min(torch.get_num_threads(), max(1, size // SMALLEST_PART))
    if threads == 1:
        function(0, size)
        return
    step = -(-size // (threads * multiple)) * multiple
    futures = [_pool(threads - 1).submit(function, start, min(start + step, size)) for start in range(step, size, step)]
    try:
        function(0, min(step, size))
    finally:  # nobody may write into the caller's memory after this returns, whatever ended it
        wait(futures)
    for future in futures:
        future.result()


def run_all(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """Results of the tasks, in their order, computed side by side."""
    threads = torch.get_num_threads()
    if threads == 1 or len(tasks) < 2:
        return [task() for task in tasks]
    return [future.result() for future in [_pool(threads).submit(task) for task in tasks]]


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads of this process on which torch uses no further threads."""
    key = (os.getpid(), threads)  # a fork inherits the table but not the threads
    if key not in _pools:
        everyone, given = threading.Barrier(threads), torch.get_num_threads()

        def start() -> None:
            torch.get_num_threads()  # a thread takes the default at its first question, and would forget what was set
            torch.set_num_threads(1)
            everyone.wait()

        pool = ThreadPoolExecutor(threads, thread_name_prefix="merge")
        for future in [pool.submit(start) for _ in range(threads)]:
            future.result()
        torch.set_num_threads(given)  # the default of threads still to come, which start() changed
        _pools[key] = pool
    return _pools[key]
