"""With what a run was made: versions, code, hardware, models, documents, command line; and what changed since."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from evomerge.errors import UserError
from evomerge.files import atomic_write_json

SCHEMA_VERSION = 1
PACKAGES = (
    "evomerge",
    "torch",
    "transformers",
    "lm_eval",
    "ray",
    "cmaes",
    "optuna",
    "numpy",
    "safetensors",
    "moocore",
    "numba",
)

_MAX_LINES = 12
_MAX_VALUE = 60


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` holds.

    Attributes:
        experiment: the resolved experiment as plain data.
        experiment_fingerprint: hash of it.
        models: name in the experiment -> fingerprint of the weights.
        documents: the document plan as plain data (ids and hashes of every split).
        versions: package -> version; packages that are not installed are left out.
        git: commit of evomerge's checkout, and whether files differ from it; empty outside a checkout.
        hardware: cpu, cores, memory_bytes, gpus.
        command: the command line.
        started: Unix seconds.
        methods: a user's merge method -> hash of its file.
    """

    experiment: Mapping[str, Any]
    experiment_fingerprint: str
    models: Mapping[str, str]
    documents: Mapping[str, Any]
    versions: Mapping[str, str]
    git: Mapping[str, Any]
    hardware: Mapping[str, Any]
    command: tuple[str, ...]
    started: float
    methods: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ManifestDifferences:
    """Readable differences: ``refuse`` forbids a resume, ``warn`` is worth a line."""

    refuse: tuple[str, ...] = field(default=())
    warn: tuple[str, ...] = field(default=())


def build_manifest(
    experiment: Mapping[str, Any],
    experiment_fingerprint: str,
    models: Mapping[str, str],
    documents: Mapping[str, Any],
    command: Sequence[str] | None = None,
    methods: Mapping[str, str] | None = None,
    engine_versions: Mapping[str, str] | None = None,
) -> Manifest:
    """Describe this run on this machine. Imports none of the packages it names.

    Args:
        experiment: the resolved experiment as plain JSON data.
        experiment_fingerprint: hash of it.
        models: name -> fingerprint.
        documents: the document plan as plain JSON data.
        command: the command line, None = this process's own.
        methods: a user's merge method -> hash of its file.
        engine_versions: package -> version of what scores from another Python environment.
    """
    return Manifest(
        experiment=experiment,
        experiment_fingerprint=experiment_fingerprint,
        models=models,
        documents=documents,
        versions={**read_versions(), **(engine_versions or {})},
        git=read_git(),
        hardware=read_hardware(),
        command=tuple(sys.argv if command is None else command),
        started=time.time(),
        methods=methods or {},
    )


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically.

    Raises:
        UserError: the disk is full or the file cannot be written.
    """
    try:
        atomic_write_json(path, {"v": SCHEMA_VERSION, **asdict(manifest)})
    except OSError as error:
        raise UserError(f"{path}: cannot write the manifest: {error.strerror or error}.") from error


def load_manifest(path: Path) -> Manifest:
    """Read ``manifest.json``.

    Raises:
        UserError: the file is missing, damaged, or of another schema version.
    """
    try:
        entries = json.loads(path.read_text())
        version = entries.pop("v")
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema version {version}, this evomerge reads {SCHEMA_VERSION}")
        return Manifest(**{**entries, "command": tuple(entries["command"])})
    except FileNotFoundError:
        raise UserError(f"{path}: the manifest is missing, so a resume cannot check its models.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: the manifest is damaged ({error}).") from error


def compare_manifests(old: Manifest, new: Manifest, may_change: Sequence[str]) -> ManifestDifferences:
    """What changed between the start of a run and now.

    Args:
        old: of the run.
        new: of this moment.
        may_change: dotted prefixes of experiment keys that only warn.

    Returns:
        Refusing: other experiment keys, model fingerprints, documents and prompts. Warning: versions, code, hardware.
    """
    # Both sides through JSON, so that tuples and lists compare equal.
    was, now = (json.loads(json.dumps(asdict(manifest))) for manifest in (old, new))
    refuse: list[str] = []
    warn: list[str] = []
    for path, change in differences(was["experiment"], now["experiment"]):
        free = any(path == prefix or path.startswith(prefix + ".") for prefix in may_change)
        (warn if free else refuse).append(f"experiment {path}: {change}")
    if was["experiment_fingerprint"] != now["experiment_fingerprint"] and was["experiment"] == now["experiment"]:
        change = _change(was["experiment_fingerprint"], now["experiment_fingerprint"])
        refuse.append(f"experiment fingerprint: {change}")
    refuse += [
        f"merge method {path}: its file differs, {change}"
        for path, change in differences(was["methods"], now["methods"])
    ]
    refuse += [f"model {path}: weights differ, {change}" for path, change in differences(was["models"], now["models"])]
    refuse += _shorten(
        [f"documents {path}: {change}" for path, change in differences(was["documents"], now["documents"])]
    )
    for part in ("versions", "git", "hardware"):
        warn += [f"{part} {path}: {change}" for path, change in differences(was[part], now[part])]
    return ManifestDifferences(tuple(refuse), tuple(warn))


def read_versions() -> dict[str, str]:
    """Versions of python and of the packages a run's numbers depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def read_git() -> dict[str, Any]:
    """Commit of the checkout evomerge runs from, empty when it is not one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {}
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    if not commit:
        return {}
    changes = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", "evomerge")
    return {"commit": commit, "changed": bool(changes)}


def read_hardware() -> dict[str, Any]:
    """CPU model, usable cores, memory, and GPUs where ``nvidia-smi`` is installed."""
    hardware: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [],
    }
    if shutil.which("nvidia-smi"):
        lines = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
        hardware["gpus"] = [line.strip() for line in lines.splitlines() if line.strip()]
    return hardware


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted path and change of every leaf that differs; of lists only the first element that does."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{path}.{key}" if path else str(key)
            if key not in new:
                yield inner, f"was {_short(old[key])}, is gone"
            elif key not in old:
                yield inner, f"is new: {_short(new[key])}"
            else:
                yield from differences(old[key], new[key], inner)
    elif isinstance(old, list) and isinstance(new, list) and max(len(old), len(new)) > 6:
        if len(old) != len(new):
            yield path, f"had {len(old)} entries, has {len(new)}"
        for index, (was, now) in enumerate(zip(old, new, strict=False)):
            if was != now:
                yield from differences(was, now, f"{path}[{index}]")
                return
    elif old != new:
        yield path, _change(old, new)


def _change(old: Any, new: Any) -> str:
    return f"was {_short(old)}, is {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 1] + "…"


def _shorten(lines: list[str]) -> list[str]:
    if len(lines) <= _MAX_LINES:
        return lines
    return [*lines[:_MAX_LINES], f"and {len(lines) - _MAX_LINES} more differences in the documents"]
