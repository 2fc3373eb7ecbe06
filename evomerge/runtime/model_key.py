"""What identifies a merged model's answers beside the questions: recipe, files, arithmetic, code and versions."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import evomerge
from evomerge.engine.content_hash import ContentHashes
from evomerge.errors import UserError
from evomerge.evaluation.known_answers import KnownAnswers
from evomerge.evaluation.score_cache import ScoreCache
from evomerge.recipes.recipe import Recipe, Source, canonical

LOG = logging.getLogger(__name__)

PACKAGES = (
    "torch", "transformers", "tokenizers", "lm_eval", "numpy", "scipy", "numba", "safetensors",
)  # fmt: skip
# Rooms whose code makes numbers; a checkout changes without a new version.
ROOMS = ("engine", "evaluation", "methods", "recipes", "runtime")
# What is read by libraries and changes their arithmetic.
VARIABLES = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE",
)  # fmt: skip


class ModelKeys:
    """Tells merged models apart, for one worker.

    Files are hashed before they are opened, and looked at again for every candidate. Once one of them changed nobody
    knows which weights are in memory, so nothing is looked up or kept from then on.

    Args:
        folder: of the cache.
        sources: every model the worker opens, its reference first.
    """

    def __init__(self, folder: Path, sources: tuple[Source, ...]) -> None:
        self._cache = ScoreCache(folder)
        self._hashes = ContentHashes()
        self._reference = self._hashes.of(sources[0])
        self._conditions: dict[str, Any] = {}
        self._is_usable = True
        for source in sources:
            self._hashes.of(source)

    def begin(self, model: Any, any_depth: bool) -> None:
        """Take note of how the live model computes.

        Args:
            model: the live model.
            any_depth: whether it is made for routes through models of several depths.
        """
        self._conditions = {**arithmetic(model), "reference": self._reference, "any_depth": any_depth}

    def known(self, recipe: Recipe) -> KnownAnswers | None:
        """What is known of a recipe's model; None where it cannot be told apart for sure, so nothing may be."""
        if not self._is_usable or _has_own_method(canonical(recipe)):
            return None
        try:
            hashes = [[canonical(source), self._hashes.of(source)] for source in _sources(recipe)]
        except (UserError, OSError):
            return None  # merging it will say what is wrong
        if not self.are_current():
            return None
        text = json.dumps(canonical(recipe), sort_keys=True, allow_nan=False)
        model = {"recipe": hashlib.sha256(text.encode()).hexdigest(), "sources": hashes, **self._conditions}
        return KnownAnswers(self._cache, model)

    def are_current(self) -> bool:
        """Whether all files are what was hashed; if not the cache is not used any more."""
        if self._is_usable and not self._hashes.are_current:
            LOG.warning("a model's files changed while they were in use: the evaluation cache is not used any more")
            self._is_usable = False
        return self._is_usable


def arithmetic(model: Any) -> dict[str, Any]:
    """What the bits of a live model's numbers depend on, apart from its weights."""
    import torch

    parameter = next(model.parameters())
    on_cpu = parameter.device.type == "cpu"
    return {
        "dtype": str(parameter.dtype),
        "device": _processor() if on_cpu else [parameter.device.type, torch.cuda.get_device_name(parameter.device)],
        "threads": torch.get_num_threads() if on_cpu else None,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "attention": str(getattr(model.config, "_attn_implementation", None)),
        "precision": [
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.are_deterministic_algorithms_enabled(),
        ],
        "cuda": torch.version.cuda,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "versions": {name: _version(name) for name in PACKAGES},
        "evomerge": [evomerge.__version__, _code_hash()],
    }


def _sources(recipe: Recipe) -> tuple[Source, ...]:
    vocabulary = recipe.vocabulary
    named = (recipe.tokenizer, None if vocabulary is None else vocabulary.source, vocabulary and vocabulary.base)
    return tuple(dict.fromkeys([*recipe.sources, *(source for source in named if isinstance(source, Source))]))


def _has_own_method(node: Any) -> bool:
    """Whether a user's own method is in a recipe: its code may call whatever it likes, and no hash covers that."""
    if isinstance(node, dict):
        own = node.get("is") == "Merge" and ":" in str(node.get("method"))
        return own or any(_has_own_method(inner) for inner in node.values())
    return isinstance(node, list) and any(_has_own_method(inner) for inner in node)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def _code_hash() -> str:
    digest = hashlib.sha256()
    for path in _code_files(Path(evomerge.__file__).parent):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _code_files(package: Path) -> Iterator[Path]:
    yield from sorted(package.glob("*.py"))
    for room in ROOMS:
        yield from sorted((package / room).glob("*.py"))


@lru_cache(maxsize=1)
def _processor() -> list[str]:
    """Kind of CPU: libraries choose their kernels by it."""
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux
    return ["cpu", platform.machine(), name]
