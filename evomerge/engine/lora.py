"""LoRA adapters, baked into the tensors of their base model one at a time. Hu 2021, https://arxiv.org/abs/2106.09685."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.engine.checkpoint import MappedFile
from evomerge.errors import UserError

PREFIX = "base_model.model."
LOW_RANK = re.compile(r"(?P<module>.+)\.lora_(?:(?P<embedding>embedding_)?(?P<side>[AB]))(?:\.default)?(?:\.weight)?")
MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
# Settings that change the arithmetic in ways not implemented here; refused unless off.
UNSUPPORTED = (
    "alora_invocation_tokens", "target_parameters", "trainable_token_indices", "lora_bias", "use_bdlora",
    "use_qalora", "kasa_config", "monteclora_config", "velora_config", "arrow_config", "layer_replication",
)  # fmt: skip


class LoraAdapter:
    """One adapter directory: low-rank updates ``B @ A * scale`` and tensors it replaces whole (``modules_to_save``).

    DoRA's magnitude vectors are read too: Liu 2024, https://arxiv.org/abs/2402.09353, eq. 5.
    """

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
        self._magnitudes: dict[str, str] = {}  # tensor name -> key
        for key in self._file.infos:
            self._add(key)
        if broken := [name for name, sides in self._low_rank.items() if set(sides) != {"A", "B"}]:
            raise UserError(f"{directory}: lora_A or lora_B is missing for {', '.join(sorted(broken)[:3])}")
        for name in (*self._low_rank, *self._magnitudes):
            self._check_shapes(name)

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
            rows, columns = infos[self._low_rank[name]["B"]].shape[0], infos[self._low_rank[name]["A"]].shape[1:]
            return (*columns, rows) if self._is_transposed(name) else (rows, *columns)
        return base_shape

    def is_product(self, name: str) -> bool:
        """Whether the adapter adds nothing but a product of two matrices to this tensor."""
        return name in self._low_rank and name not in self._replaced and name not in self._magnitudes

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """``up`` ``(out, r)`` and ``down`` ``(r, in)`` of a product, scale included, in fp64."""
        sides = self._low_rank[name]
        up, down = self._file.tensor(sides["B"]).double(), self._file.tensor(sides["A"]).double()
        return up * self._scale(name), down

    def is_transposed(self, name: str) -> bool:
        """Whether the tensor is stored as the transpose of ``up @ down``."""
        return self._is_transposed(name)

    def rank(self, name: str) -> int:
        """Rank of a product."""
        return self._file.infos[self._low_rank[name]["A"]].shape[0]

    def bake(self, name: str, base: Tensor | None, wide: bool = False) -> Tensor:
        """The tensor with the adapter's update, in the base tensor's dtype; the update is computed and added in fp32.

        Args:
            name: name in the base model.
            base: the base model's tensor, None where the adapter replaces it.
            wide: whether a changed tensor stays in fp32.
        """
        if name in self._replaced:
            tensor = self._file.tensor(self._replaced[name])
            base = tensor if base is None or wide else tensor.to(base.dtype)
        assert base is not None
        if name not in self._low_rank:
            return base
        sides = self._low_rank[name]
        # The factors of convolutions have further dimensions, which the product keeps.
        update = self._file.tensor(sides["B"]).float().flatten(1) @ self._file.tensor(sides["A"]).float().flatten(1)
        update = update.T if self._is_transposed(name) else update.view(base.shape)
        baked = torch.add(base.float(), update, alpha=self._scale(name))
        if name in self._magnitudes:
            baked *= self._magnitude(name) / self._column_norm(name, baked)
        return baked if wide else baked.to(base.dtype)

    def _magnitude(self, name: str) -> Tensor:
        vector = self._file.tensor(self._magnitudes[name]).float().flatten()
        return vector if self._is_transposed(name) else vector[:, None]

    def _column_norm(self, name: str, baked: Tensor) -> Tensor:
        dim = 0 if self._is_transposed(name) else 1
        norm: Tensor = torch.linalg.norm(baked, dim=dim, keepdim=True)
        return norm

    def _add(self, key: str) -> None:
        name = key.removeprefix(PREFIX)
        if magnitude := MAGNITUDE.fullmatch(name):
            self._magnitudes[magnitude["module"] + ".weight"] = key
            return
        match = LOW_RANK.fullmatch(name)
        if match is None:
            if "lora_" in name:
                raise UserError(f"{self.directory}: {key} is no LoRA or DoRA tensor; merge the adapter with peft first")
            # Embeddings with an update are stored with the tensor they update, under base_layer.
            self._replaced[re.sub(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)", "", name)] = key
            return
        target = match["module"] + ".weight"
        self._low_rank.setdefault(target, {})[match["side"]] = key
        if match["embedding"]:
            self._embeddings.add(target)

    def _check_shapes(self, name: str) -> None:
        infos = self._file.infos
        if name not in self._low_rank:
            raise UserError(f"{self._file.path}: {name} has a magnitude vector and no lora_A and lora_B")
        up, down = (infos[self._low_rank[name][side]].shape for side in "BA")
        if len(up) < 2 or len(down) < 2 or up[1] != down[0] or math.prod(up[2:]) != 1 or down[0] == 0:
            raise UserError(
                f"{self._file.path}: lora_B of {name} is {list(up)} and lora_A {list(down)}; expected [out, rank] and "
                "[rank, in]. Save the adapter again."
            )
        if name in self._magnitudes and (len(up) > 2 or math.prod(infos[self._magnitudes[name]].shape) != up[0]):
            raise UserError(
                f"{self._file.path}: the magnitude vector of {name} is {list(infos[self._magnitudes[name]].shape)}, "
                f"expected [{up[0]}] beside matrices; merge other adapters with peft first"
            )

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
