"""A user's fitness function that reads the merged weights and fails in the ways user code fails."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

RAISE, EXIT, NOT_FINITE, OUT_OF_MEMORY, OUT_OF_MEMORY_ONCE, MEDDLE, DRAW = range(201, 208)


def score(model: Any, tokenizer: Any, documents: list[dict[str, Any]], seed: int) -> float:
    if seed == RAISE:
        raise KeyError("the fitness is broken")
    if seed == EXIT:
        sys.exit(3)
    if seed == NOT_FINITE:
        return float("nan")
    if seed == OUT_OF_MEMORY or (seed == OUT_OF_MEMORY_ONCE and _first_time("memory")):
        torch.empty(2**50)
    if seed == MEDDLE:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(True)
        torch.set_num_threads(1)
    if seed == DRAW:
        return random.random() + float(np.random.random()) + float(torch.rand(()))  # noqa: NPY002
    return float(sum(parameter.double().abs().sum() for parameter in model.parameters()))


def _first_time(name: str) -> bool:
    flag = Path(os.environ["EVOMERGE_TEST_FLAGS"]) / name
    seen = flag.exists()
    flag.touch()
    return not seen
