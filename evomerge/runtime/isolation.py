"""Keeps one evaluation from leaving traces in the process: random states, torch settings, threads."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def isolated_evaluation(seed: int, threads: int | None = None) -> Iterator[None]:
    """Seeds every global random state, and puts back all it found afterwards.

    Our own code never draws from global states; generation with sampling and users' fitness functions may.

    Args:
        seed: seed of this evaluation.
        threads: torch threads inside, None = as they are.
    """
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    num_threads, dtype, grad = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=devices):
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.manual_seed(seed)
            torch.set_grad_enabled(False)
            if threads is not None and threads != num_threads:
                torch.set_num_threads(threads)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.use_deterministic_algorithms(deterministic)
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
