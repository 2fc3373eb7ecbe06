"""evomerge: evolutionary search for merges of language models.

Start at ``evomerge/experiment/run.py``. Every verb of the command line is a function here, imported on first use.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_CALLS = {
    "run": "evomerge.experiment.run",
    "resume": "evomerge.experiment.run",
    "validate": "evomerge.experiment.validate",
    "merge": "evomerge.experiment.merging",
    "evaluate": "evomerge.experiment.evaluating",
    "front": "evomerge.experiment.inspecting",
    "front_view": "evomerge.experiment.front_view",
    "export": "evomerge.experiment.inspecting",
    "project": "evomerge.experiment.inspecting",
    "report": "evomerge.experiment.reporting",
    "dashboard": "evomerge.experiment.inspecting",
    "cache_info": "evomerge.experiment.score_cache",
    "clear_cache": "evomerge.experiment.score_cache",
}
__all__ = ["__version__", *sorted(_CALLS)]


def __getattr__(name: str) -> Any:
    if name in _CALLS:
        return getattr(import_module(_CALLS[name]), name)
    raise AttributeError(f"module 'evomerge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
