"""Threads and chunks: every element once, without touching torch's own setting."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from evomerge.methods.cores import SMALLEST_PART, run_all, run_ranges
from evomerge.methods.sweep import CPU_CHUNK, sweep


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [0, 1, 5000, SMALLEST_PART, 700_001])
def test_ranges_cover_every_element_once(threads: int, size: int) -> None:
    count, seen = np.zeros(size), set[int]()

    def part(start: int, end: int) -> None:
        assert start % 512 == 0 or start == 0
        count[start:end] += 1
        seen.add(threading.get_ident())

    run_ranges(part, size, 512)
    assert (count == 1).all()
    assert threading.get_ident() in seen
    if size < 2 * SMALLEST_PART:
        assert len(seen) == 1


def test_side_by_side_and_in_order(threads: int) -> None:
    together = threading.Barrier(threads)

    def task(number: int) -> tuple[int, int]:
        together.wait(30)
        return number, torch.get_num_threads()

    results = run_all([lambda number=number: task(number) for number in range(threads)])  # type: ignore[misc]
    assert results == [(number, 1) for number in range(threads)]
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == threads


def test_an_error_in_any_range_reaches_the_caller_after_all_have_ended(threads: int) -> None:
    ended = []

    def part(start: int, end: int) -> None:
        ended.append(start)
        if end == 1_000_000:
            raise ArithmeticError("no")

    with pytest.raises(ArithmeticError):
        run_ranges(part, 1_000_000, 512)
    assert len(ended) == threads


def test_several_callers_at_once(threads: int) -> None:
    def double(value: int) -> bool:
        out = np.full(200_000, float(value))

        def part(start: int, end: int) -> None:
            out[start:end] *= 2

        run_ranges(part, len(out), 512)
        return bool((out == 2 * value).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(double, range(12)))


@pytest.mark.parametrize("size", [0, 1, 5000, CPU_CHUNK, 3 * CPU_CHUNK + 1])
def test_sweep_meets_every_element_once_at_its_index(size: int) -> None:
    def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
        assert not torch.is_grad_enabled()
        assert {len(tensor) for tensor in (*buffers, *pieces)} <= {len(target)}
        assert len(target) <= CPU_CHUNK
        torch.add(pieces[0], torch.arange(start, start + len(target)), out=buffers[0])
        target.add_(buffers[0])

    out, source = torch.zeros(size), torch.ones(size)
    sweep(kernel, out, [source], num_buffers=2)
    assert torch.equal(out, torch.arange(1, size + 1).float())
