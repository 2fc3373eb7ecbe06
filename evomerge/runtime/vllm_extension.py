"""What evomerge adds to vLLM's own workers: candidates are merged where the weights are.

vLLM mixes the class into its worker class by name (``worker_extension_cls``) and calls its methods by name with plain
arguments (``collective_rpc``), so no tensor and no pickle crosses a process border. Names begin with ``evomerge_``, as
vLLM refuses extensions that share a name with its workers.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

EXTENSION = "evomerge.runtime.vllm_extension.MergeExtension"

# Parts of a configuration that stand for weights which vLLM keeps in another layout than the checkpoint's.
UNSUPPORTED = {
    "quantization_config": "its weights are quantised",
    "num_experts": "it has routed experts",
    "num_local_experts": "it has routed experts",
    "n_routed_experts": "it has routed experts",
    "moe_num_experts": "it has routed experts",
    "kv_lora_rank": "it has latent attention (MLA)",
    "vision_config": "it reads images",
    "audio_config": "it hears sound",
    "ssm_cfg": "it has state-space layers",
    "mamba_d_state": "it has state-space layers",
    "mamba_num_heads": "it has state-space layers",
}
ATTENTIONS = ("full_attention", "sliding_attention", "chunked_attention")


def why_unsupported(config: dict[str, Any]) -> str | None:
    """Why a model is no plain dense decoder, in which a weight is where its name says; None where it is one.

    Args:
        config: the contents of its ``config.json``.
    """
    if config.get("is_encoder_decoder"):
        return "it is an encoder-decoder"
    config = {**config, **(config.get("text_config") or {})}
    for key, reason in UNSUPPORTED.items():
        if config.get(key) not in (None, 0, 1, False, {}):
            return reason
    kinds = [str(kind) for kind in config.get("layer_types") or ()]
    odd = sorted({kind for kind in kinds if kind not in ATTENTIONS})
    return f"it has layers of kind {odd[0]}" if odd else None


class MergeExtension:
    """Mixed into vLLM's worker class; every method answers JSON text, also about its errors."""

    def evomerge_open(self, plan: str) -> str:
        """Open the models that candidates will merge.

        Args:
            plan: JSON with ``reference``, ``sources``, ``import_paths``, ``state_memory_bytes`` and ``threads``.
        """
        return _answer(lambda: self._evomerge_opened(json.loads(plan)))

    def evomerge_apply(self, recipe: str) -> str:
        """Merge a recipe straight into the running model.

        Args:
            recipe: in evomerge's own YAML.
        """
        return _answer(lambda: self._evomerge_applied(recipe))

    def _evomerge_opened(self, plan: dict[str, Any]) -> dict[str, Any]:
        import torch

        from evomerge.engine.merge_stream import MergeStream
        from evomerge.recipes.recipe import Source

        sys.path.extend(path for path in plan["import_paths"] if path not in sys.path)
        model: Any = self.get_model()  # type: ignore[attr-defined]
        device = next(model.parameters()).device
        if device.type == "cpu":
            torch.set_num_threads(plan["threads"])
        self._evomerge_stream = MergeStream(
            Source(**plan["reference"]),
            [Source(**source) for source in plan["sources"]],
            device,
            plan["state_memory_bytes"],
        )
        return {}

    def _evomerge_applied(self, text: str) -> dict[str, Any]:
        import torch

        from evomerge.recipes.recipe_yaml import parse_recipe

        began = time.perf_counter()
        model: Any = self.get_model()  # type: ignore[attr-defined]
        with torch.no_grad():
            loaded = model.load_weights(self._evomerge_stream.tensors(parse_recipe(text)))
        # vLLM's models name what they wrote; what they did not write would be left over from the last candidate.
        if loaded is not None:
            missing = sorted({name for name, _ in model.named_parameters()} - set(loaded))
            if missing:
                raise RuntimeError(f"{len(missing)} weights were not written, first {missing[0]}")
        if next(model.parameters()).is_cuda:
            torch.cuda.synchronize()
        state = self._evomerge_stream.state_bytes
        return {"seconds": time.perf_counter() - began, "state_bytes": state}


def _answer(work: Any) -> str:
    """JSON of what the work gave, or of its error: an exception would take vLLM's worker down with it."""
    from evomerge.errors import MergeFailed, UserError

    try:
        return json.dumps({"ok": work()})
    except MergeFailed as error:
        return json.dumps({"error": "merge", "message": str(error)})
    except UserError as error:
        return json.dumps({"error": "user", "message": str(error)})
    except Exception as error:  # of vLLM or torch: whoever asked decides
        return json.dumps({"error": kind_of(error), "message": f"{type(error).__name__}: {error}"})


def kind_of(error: BaseException) -> str:
    """``memory`` where memory ran out, else ``engine``."""
    text = f"{type(error).__name__} {error}".lower()
    return "memory" if isinstance(error, MemoryError) or "outofmemory" in text or "out of memory" in text else "engine"
