"""Tensors side by side: every one once, and the same error whatever the timing."""

from __future__ import annotations

import sys
import threading
import time

import pytest
import torch

from evomerge.engine.architecture import Architecture, Slot
from evomerge.engine.tensor_threads import ELEMENTS_IN_WORK, TensorThreads


def threads(num_threads: int, *sizes: int) -> TensorThreads:
    slots = tuple(Slot(f"w{index}", (size,), 0, "mlp") for index, size in enumerate(sizes))
    return TensorThreads(num_threads, Architecture("llama", 1, slots, (), (), False, ""))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_every_item_once(num_threads: int) -> None:
    seen: list[int] = []
    threads(num_threads, 10).each(seen.append, range(50))
    assert sorted(seen) == list(range(50))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_first_item_that_fails_is_named_even_if_it_fails_last(num_threads: int) -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 1:
            time.sleep(0.2)
        if item >= 1:
            raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 1"):
        threads(num_threads, 10).each(work, range(50))
    assert len(begun) <= 2 * num_threads


@pytest.mark.parametrize("num_threads", [1, 3])
def test_an_exit_inside_a_call_is_not_lost(num_threads: int) -> None:
    with pytest.raises(SystemExit):
        threads(num_threads, 10).each(lambda item: sys.exit(3), range(5))


def test_cores_are_shared_out() -> None:
    given: list[int] = []

    def work(item: int) -> None:
        given.append(torch.get_num_threads())
        barrier.wait(5)

    barrier = threading.Barrier(3)
    threads(3, 10).each(work, range(3))
    assert given == [1, 1, 1]
    assert threads(3, ELEMENTS_IN_WORK).num_workers == 1
