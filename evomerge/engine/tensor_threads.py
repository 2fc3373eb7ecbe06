"""Working on several tensors at a time on a CPU.

Sorting and selecting use one core, and a thread that is woken for its share of one tensor begins late: whole tensors
are worked on side by side, one core each. Only tensors that would keep one core busy long after the others are done
are split over all cores.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from evomerge.engine.architecture import Architecture

# Elements of the tensors in work at once: bounds the temporaries that preparing a tensor needs.
ELEMENTS_IN_WORK = 1 << 26

Item = TypeVar("Item")
Result = TypeVar("Result")


class TensorThreads:
    """Runs a function over tensors on worker threads, each with its share of the cores."""

    def __init__(self, num_threads: int, architecture: Architecture) -> None:
        """Decide how many tensors are in work at once; threads start at first use.

        Args:
            num_threads: cores to use in total.
            architecture: whose tensors will be merged; large ones are better split than merged side by side.
        """
        largest = max((slot.num_elements for slot in architecture.slots if not slot.is_vocabulary), default=1)
        self.num_workers = max(1, min(num_threads, ELEMENTS_IN_WORK // largest))
        self._threads_each = max(1, num_threads // self.num_workers)
        self._pool: ThreadPoolExecutor | None = None

    def each(self, function: Callable[[Item], None], items: Iterable[Item]) -> None:
        """Call a function for every item, begun in their order, and return when none is in work.

        Raises:
            Exception: that of the first item whose call raised; items not begun by then are left out.
        """
        if self.num_workers == 1:
            for item in items:
                function(item)
            return
        queue, lock, stopped = iter(enumerate(items)), threading.Lock(), threading.Event()
        errors: dict[int, Exception] = {}

        def work() -> None:
            while not stopped.is_set():
                with lock:
                    index, item = next(queue, (-1, None))
                if item is None:
                    return
                try:
                    function(item)
                except Exception as error:
                    errors[index] = error
                    stopped.set()

        futures = [self._threads().submit(work) for _ in range(self.num_workers)]
        try:
            wait(futures)
        finally:  # an interrupt of the waiting thread ends the workers too
            stopped.set()
            wait(futures)
        if errors:
            raise errors[min(errors)]
        for future in futures:
            future.result()  # raises what is no Exception, such as an exit

    def in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results of a function in the order of the items, with a few of the next ones in work."""
        if self.num_workers == 1:
            yield from map(function, items)
            return
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._threads().submit(function, item))
                if len(waiting) > self.num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            # The number of torch threads is each thread's own; that of the caller stays as it is.
            self._pool = ThreadPoolExecutor(
                self.num_workers, "merge", initializer=torch.set_num_threads, initargs=(self._threads_each,)
            )
        return self._pool
