"""LoRA adapters, baked into the tensors of their base model one at a time. Hu 2021, https://arxiv.org/abs/2106.09685."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.engine.checkpoint import MappedFile
from evomerge.errors import UserError

PREFIX = "base_model.model."
LOW_RANK = re.compile(r"(?P<module>.+)\.lora_(?:(?P<embedding>embedding_)?(?P<side>[AB]))(?:\.default)?(?:\.weight)?")
# Settings that change the arithmetic in ways not implemented here; refused unless off.
UNSUPPORTED = (
    "use_dora", "alora_invocation_tokens", "target_parameters", "trainable_token_indices", "lora_bias", "use_bdlora",
    "use_qalora", "kasa_config", "monteclora_config", "velora_config", "arrow_config", "layer_replication",
)  # fmt: skip


class LoraAdapter:
    """One adapter directory: low-rank updates ``B @ A * scale`` and tensors it replaces whole (``modules_to_save``)."""

    def __init__(self, directory: Path) -> None:
        """Read the adapter's configuration and headers.

        Raises:
            UserError: not a LoRA adapter, or one with features that cannot be baked here (DoRA and such).
        """
        self.directory = directory
        self.config = _read_config(directory)
        self._file = MappedFile(directory / "adapter_model.safetensors")
        self._low_rank: dict[str, dict[str, str]] = {}  # tensor name -> {"A": key, "B": key}
        self._embeddings: set[str] = set()
        self._replaced: dict[str, str] = {}  # tensor name -> key
        for key in self._file.infos:
            self._add(key)
        if broken := [name for name, sides in self._low_rank.items() if set(sides) != {"A", "B"}]:
            raise UserError(f"{directory}: lora_A or lora_B is missing for {', '.join(sorted(broken)[:3])}")

    @property
    def names(self) -> frozenset[str]:
        """Names of the base model's tensors that the adapter changes."""
        return frozenset(self._low_rank) | frozenset(self._replaced)

    def replaces(self, name: str) -> bool:
        """Whether the adapter holds this tensor whole."""
        return name in self._replaced

    def shape(self, name: str, base_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a tensor after baking, given its shape in the base model."""
        if name in self._replaced:
            return self._file.infos[self._replaced[name]].shape
        if name in self._low_rank:
            infos = self._file.infos
            rows, columns = infos[self._low_rank[name]["B"]].shape[0], infos[self._low_rank[name]["A"]].shape[-1]
            return (columns, rows) if self._is_transposed(name) else (rows, columns)
        return base_shape

    def bake(self, name: str, base: Tensor | None) -> Tensor:
        """The tensor with the adapter's update, in the base tensor's dtype; the update is computed and added in fp32.

        Args:
            name: name in the base model.
            base: the base model's tensor, None where the adapter replaces it.
        """
        if name in self._replaced:
            tensor = self._file.tensor(self._replaced[name])
            base = tensor if base is None else tensor.to(base.dtype)
        assert base is not None
        if name not in self._low_rank:
            return base
        sides = self._low_rank[name]
        update = self._file.tensor(sides["B"]).float() @ self._file.tensor(sides["A"]).float()
        if self._is_transposed(name):
            update = update.T
        return torch.add(base.float(), update, alpha=self._scale(name)).to(base.dtype)

    def _add(self, key: str) -> None:
        name = key.removeprefix(PREFIX)
        match = LOW_RANK.fullmatch(name)
        if match is None:
            if "lora_" in name:
                raise UserError(f"{self.directory}: {key} is not a plain LoRA tensor (DoRA and such are not read)")
            # Embeddings with an update are stored with the tensor they update, under base_layer.
            self._replaced[re.sub(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)", "", name)] = key
            return
        target = match["module"] + ".weight"
        self._low_rank.setdefault(target, {})[match["side"]] = key
        if match["embedding"]:
            self._embeddings.add(target)

    def _is_transposed(self, name: str) -> bool:
        # Embeddings store [vocabulary, hidden] and are updated by (B @ A)^T; Conv1D stores [in, out].
        return name in self._embeddings or bool(self.config.get("fan_in_fan_out"))

    def _scale(self, name: str) -> float:
        module = name.removesuffix(".weight")
        rank = self._file.infos[self._low_rank[name]["A"]].shape[0]
        alpha = float(_by_pattern(self.config.get("alpha_pattern"), module, self.config.get("lora_alpha", rank)))
        return alpha / rank**0.5 if self.config.get("use_rslora") else alpha / rank


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    # peft: a key matches the module's name, or its end after a dot.
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "adapter_config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable adapter configuration ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise UserError(f"{path}: expected a LoRA adapter (peft_type LORA), got {kind}")
    if on := [name for name in UNSUPPORTED if config.get(name)]:
        raise UserError(f"{path}: cannot bake {', '.join(on)}; merge the adapter with peft's merge_and_unload first")
    return config
