"""A search on the micro zoo that takes seconds."""

from pathlib import Path
from typing import Any

import pytest
import yaml

EXPERIMENT: dict[str, Any] = {
    "name": "tiny",
    "models": {
        "base": "zoo:micro-base",
        "experts": {"add": "zoo:micro-add", "let": "zoo:micro-let"},
    },
    "search_space": "task_arithmetic_whole_model",
    "fitness": [
        {
            "preset": "micro_add",
            "documents": {"search": {"limit": 8}, "validation": {"limit": 8}, "held_out": {"limit": 8}},
        },
        {
            "preset": "micro_copy",
            "documents": {"search": {"limit": 6}, "validation": {"limit": 6}, "held_out": {"limit": 6}},
        },
    ],
    "optimizer": {"name": "cma_es", "population_size": 4, "lr_adapt": False},
    "budget": {"evaluations": 9},
    "runtime": {"executor": "inline", "threads": 1},
    "finish": {"top_k": 2, "task_arithmetic": [0.7], "bootstrap_samples": 200},
    "seed": 11,
}


@pytest.fixture
def tiny(micro_zoo: dict[str, Path], tmp_path: Path) -> Path:
    """The experiment file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT))
    return path
