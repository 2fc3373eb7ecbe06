"""What a vLLM worker is started with. Imported on both sides, so by the standard library alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VllmSettings:
    """The ``runtime.vllm`` part of an experiment as plain values.

    Attributes:
        python: interpreter of the environment that has vLLM.
        tensor_parallel: GPUs that one worker's model is spread over.
        gpu_memory_utilization: share of a GPU's memory that vLLM takes; the merge needs room beside it.
        max_model_len: longest prompt with its answer, in tokens; None = what the model takes.
        enforce_eager: leave CUDA graphs and compilation out.
        version: vLLM's version, as found when the environment was checked.
    """

    python: str
    tensor_parallel: int = 1
    gpu_memory_utilization: float = 0.85
    max_model_len: int | None = None
    enforce_eager: bool = False
    version: str = ""

    @property
    def label(self) -> str:
        """What scored, for people and records."""
        return f"vllm {self.version}".rstrip()
