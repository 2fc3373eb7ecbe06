"""What was once found of an architecture, kept on disk: building a model to look at it costs seconds of imports."""

from __future__ import annotations

import contextlib
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evomerge.files import atomic_write_json, cache_dir

FORMAT = 1  # of the facts; another number leaves all that is kept behind
PACKAGES = ("torch", "transformers", "evomerge")  # whose versions the facts depend on


def kept_facts(config: Path, variant: object) -> dict[str, Any] | None:
    """The facts kept for a configuration, None where there are none.

    Args:
        config: a config.json; facts belong to its contents, wherever it is.
        variant: tells several facts of one configuration apart.
    """
    try:
        facts = json.loads(_path(config, variant).read_text())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def keep_facts(config: Path, variant: object, facts: dict[str, Any]) -> None:
    """Keep the facts; where the disk does not take them they are found again the next time."""
    with contextlib.suppress(OSError):
        path = _path(config, variant)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, facts)


def _path(config: Path, variant: object) -> Path:
    known = [FORMAT, *(f"{name} {version(name)}" for name in PACKAGES), repr(variant)]
    digest = hashlib.sha256(json.dumps(known).encode() + b"\0" + config.read_bytes()).hexdigest()
    return cache_dir() / "architectures" / f"{digest[:32]}.json"
