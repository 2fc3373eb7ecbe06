"""From a recipe's source to files on this machine: local directories, the zoo, the hub, and LoRA adapters. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evomerge.engine.safetensors_header import read_header, weight_files
from evomerge.errors import UserError
from evomerge.recipes.recipe import Source

ZOO_PREFIX = "zoo:"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Only what merging and scoring read; pickled weights are never asked for.
HUB_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
HUB_IGNORED = ("*/*", "consolidated*", "*.bin", "training_args*", "optimizer*")
SAMPLES_PER_FILE = 64
SAMPLE_BYTES = 4096

State = Literal["local", "zoo", "zoo_to_build", "cached", "to_download", "missing"]


@dataclass(frozen=True)
class SourceStatus:
    """What is known of a source without downloading anything.

    Attributes:
        source: the source.
        state: ``local``, ``zoo`` (built), ``zoo_to_build``, ``cached`` (hub), ``to_download`` (hub), ``missing``.
        message: one line for a person; for ``zoo_to_build`` and ``missing`` it says what to do.
        path: the model's directory where it is on this machine.
    """

    source: Source
    state: State
    message: str
    path: Path | None = None

    @property
    def ready(self) -> bool:
        """Whether the model can be opened now without a download."""
        return self.path is not None


def resolve_source(source: Source) -> Path:
    """Directory of the source's model (without its adapter), downloaded from the hub if that is allowed.

    A single safetensors file stands for itself.

    Raises:
        UserError: it is not there, has only pickled weights, or the hub cannot be used.
    """
    return _resolve(source.model, source.revision, "model")


def resolve_adapter(source: Source) -> Path | None:
    """Directory of the source's LoRA adapter, None when it has none.

    Raises:
        UserError: as ``resolve_source``.
    """
    if source.adapter is None:
        return None
    return _resolve(source.adapter, source.adapter_revision, "adapter")


def describe_source(source: Source) -> SourceStatus:
    """What is known of a source; never downloads and never asks the network."""
    status = _describe(source, source.model, source.revision, "model")
    if source.adapter is None or status.state in ("missing", "zoo_to_build"):
        return status
    adapter = _describe(source, source.adapter, source.adapter_revision, "adapter")
    if adapter.ready:
        return status
    return SourceStatus(source, adapter.state, f"adapter {source.adapter}: {adapter.message}")


def fingerprint(source: Source) -> str:
    """32 hex digits that change when the model changes: weights (sampled), configuration, tokenizer, adapter.

    Every header and size, all small files, and 64 evenly spaced pieces of 4 KiB of each weight file are hashed, so the
    cost is milliseconds for any size of model. It does not depend on where the files lie.

    Raises:
        UserError: as ``resolve_source``.
    """
    digest = hashlib.sha256()
    _hash_directory(digest, resolve_source(source), "model")
    adapter = resolve_adapter(source)
    if adapter is not None:
        _hash_directory(digest, adapter, "adapter")
    return digest.hexdigest()[:32]


def is_offline() -> bool:
    """Whether the hub must not be asked (``HF_HUB_OFFLINE``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


Role = Literal["model", "adapter"]


def _resolve(name: str, revision: str | None, role: Role) -> Path:
    if name.startswith(ZOO_PREFIX):
        from evomerge.zoo.catalogue import locate

        return locate(name.removeprefix(ZOO_PREFIX))
    path = _as_path(name, role)
    if path.is_dir() or (path.is_file() and path.suffix == ".safetensors" and role == "model"):
        _check_complete(path, role)
        return path
    if _looks_local(name):
        raise UserError(_not_there(name, role))
    return _download(name, revision, role)


def _as_path(name: str, role: Role) -> Path:
    try:
        path = Path(name).expanduser()
        path.exists()  # raises where no file could have that name
    except (OSError, ValueError, RuntimeError) as error:
        shown = repr(name if len(name) < 100 else name[:100] + "...")
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{role} {shown}: no such directory ({reason})") from error
    return path


def _describe(source: Source, name: str, revision: str | None, role: Role) -> SourceStatus:
    if name.startswith(ZOO_PREFIX):
        from evomerge.zoo.catalogue import is_built, look_up

        zoo_name = name.removeprefix(ZOO_PREFIX)
        try:
            look_up(zoo_name)
            if is_built(zoo_name):
                path = _resolve(name, revision, role)
                return SourceStatus(source, "zoo", f"built in {path}", path)
            return SourceStatus(source, "zoo_to_build", f"not built yet; run: evomerge zoo build {zoo_name}")
        except UserError as error:
            return SourceStatus(source, "missing", str(error))
    try:
        here = _as_path(name, role).exists()
    except UserError as error:
        return SourceStatus(source, "missing", str(error))
    path = Path(name).expanduser()
    if here or _looks_local(name):
        try:
            return SourceStatus(source, "local", f"in {path}", _resolve(name, revision, role))
        except UserError as error:
            return SourceStatus(source, "missing", str(error))
    cached = _find_cached(name, revision, role)
    if cached is not None:
        return SourceStatus(source, "cached", f"in the hub cache, {cached}", cached)
    if is_offline():
        return SourceStatus(source, "missing", "not in the hub cache, and HF_HUB_OFFLINE forbids a download")
    where = f"https://huggingface.co/{name}" + (f" at {revision}" if revision else "")
    return SourceStatus(source, "to_download", f"would be downloaded from {where}")


def _looks_local(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or HUB_ID.fullmatch(name) is None


def _not_there(name: str, role: Role) -> str:
    path = Path(name).expanduser()
    if path.is_file():
        expected = "a directory or a .safetensors file" if role == "model" else "a directory"
        return f"{role} {name!r}: expected {expected}, got another file. Give the directory with config.json in it."
    return f"{role} {name!r}: no such directory ({path.absolute()})"


def _check_complete(directory: Path, role: Role) -> None:
    if role == "adapter":
        if not (directory / "adapter_config.json").is_file():
            raise UserError(f"{directory}: not a LoRA adapter (no adapter_config.json)")
        if not (directory / ADAPTER_WEIGHTS).is_file():
            raise UserError(
                f"{directory}: no {ADAPTER_WEIGHTS}. Pickled adapters are not read; save the adapter again "
                "with save_pretrained(..., safe_serialization=True)"
            )
        return
    weight_files(directory)


def _find_cached(name: str, revision: str | None, role: Role) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    probe = "config.json" if role == "model" else "adapter_config.json"
    found = try_to_load_from_cache(name, probe, revision=revision)
    if not isinstance(found, str):
        return None
    directory = Path(found).parent
    try:
        _check_complete(directory, role)
    except UserError:
        return None  # a download that was cut off
    return directory


def _download(name: str, revision: str | None, role: Role) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    cached = _find_cached(name, revision, role)
    if cached is not None and (is_offline() or revision is not None):
        return cached
    label = f"{role} {name!r}" + (f" at revision {revision!r}" if revision else "")
    if is_offline():
        raise UserError(
            f"{label} is neither a local directory nor in the hub cache, and HF_HUB_OFFLINE is set. "
            "Download it on a machine with network, give a "
            "local directory, or unset HF_HUB_OFFLINE."
        )
    try:
        path = snapshot_download(
            name, revision=revision, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_IGNORED)
        )
    except hub.GatedRepoError as error:
        raise UserError(f"{label} is gated: accept its terms on the hub and log in with `hf auth login`") from error
    except hub.RevisionNotFoundError as error:
        raise UserError(f"{label}: the hub has no such revision") from error
    except hub.RepositoryNotFoundError as error:
        raise UserError(f"{label}: neither a local directory nor a model on the hub that you may read") from error
    except (hub.HfHubHTTPError, hub.LocalEntryNotFoundError, hub.HFValidationError, OSError) as error:
        if cached is not None:
            return cached  # the hub cannot be reached, but the files are here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{label} is not on this machine and could not be downloaded: {reason}") from error
    directory = Path(path)
    _check_complete(directory, role)
    return directory


def _hash_directory(digest: hashlib._Hash, directory: Path, role: Role) -> None:
    weights = [directory / ADAPTER_WEIGHTS] if role == "adapter" else weight_files(directory)
    configs = ["adapter_config.json"] if role == "adapter" else _small_files(directory)
    for name in configs:
        data = (directory / name).read_bytes()
        digest.update(f"{role}/{name}:{len(data)}:".encode() + hashlib.sha256(data).digest())
    for path in weights:
        read_header(path)  # a broken file is told now, by name
        _hash_samples(digest, path)


def _small_files(directory: Path) -> list[str]:
    names = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja",
             "vocab.json", "merges.txt", "special_tokens_map.json", "generation_config.json")  # fmt: skip
    return [name for name in names if (directory / name).is_file()]


def _hash_samples(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
        digest.update(json.dumps([path.name, size]).encode() + hashlib.sha256(header).digest())
        step = max(SAMPLE_BYTES, (size - SAMPLE_BYTES) // (SAMPLES_PER_FILE - 1))
        for start in range(0, size, step):
            stream.seek(start)
            digest.update(stream.read(SAMPLE_BYTES))
