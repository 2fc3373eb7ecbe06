"""The walk over chunks: every element once, on several threads, without touching torch's own setting."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from evomerge.methods.sweep import sweep


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [0, 1, 5000, 32768, 700_001])
def test_every_element_once_at_its_index(threads: int, size: int) -> None:
    seen: set[int] = set()

    def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
        assert not torch.is_grad_enabled()
        assert torch.get_num_threads() == 1 or len(target) < 32768
        assert {len(tensor) for tensor in (*buffers, *pieces)} <= {len(target)}
        torch.add(pieces[0], torch.arange(start, start + len(target)), out=buffers[0])
        target.add_(buffers[0])
        seen.add(threading.get_ident())

    out, source = torch.zeros(size), torch.ones(size)
    sweep(kernel, out, [source], num_buffers=2, num_hot=2)
    assert torch.equal(out, torch.arange(1, size + 1).float())
    assert (threading.get_ident() in seen) == (threads == 1 or 0 <= size < 32768)


def test_torchs_threads_stay_as_they_were(threads: int) -> None:
    out = torch.zeros(100_000)
    sweep(lambda start, target, buffers, pieces: None, out, [out], num_buffers=1, num_hot=1)
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == threads


def test_an_error_in_a_chunk_reaches_the_caller_and_stops_the_rest(threads: int) -> None:
    calls = []

    def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
        calls.append(start)
        raise ArithmeticError("no")

    out = torch.zeros(5_000_000)
    with pytest.raises(ArithmeticError):
        sweep(kernel, out, [out], num_buffers=1, num_hot=8)
    assert 1 <= len(calls) <= threads


def test_several_callers_at_once(threads: int) -> None:
    def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
        target.copy_(buffers[0].copy_(pieces[0]).mul_(2.0))

    def double(value: int) -> bool:
        out = torch.zeros(200_000)
        sweep(kernel, out, [torch.full((200_000,), float(value))], num_buffers=1, num_hot=4)
        return bool((out == 2 * value).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(double, range(12)))
