"""Stands in for vLLM in tests: the calls evomerge makes, on transformers and a CPU, for Llama-like models.

Like vLLM it fuses projections, mixes an extension into its worker, keeps keys and values of prompt blocks between calls
until it is told to forget them, matches stop strings in text decoded behind the prompt, prints to stdout and starts a
process of its own. It misbehaves as the file says that ``VLLM_STANDIN_FAULT`` names.
"""

from __future__ import annotations

import importlib
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vllm.fused import FusedLlama, decode, keys_and_values

__version__ = "0.25.1"
BLOCK = 16


@dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int = 16
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logprobs: int | None = None


@dataclass
class Logprob:
    logprob: float


@dataclass
class CompletionOutput:
    token_ids: list[int]
    text: str
    finish_reason: str
    logprobs: list[dict[int, Logprob]] | None = None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)


class Worker:
    """Holds the model, as vLLM's worker does."""

    def __init__(self, model: FusedLlama) -> None:
        self.model = model

    def get_model(self) -> FusedLlama:
        return self.model


class LLM:
    """The offline engine."""

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str,
        dtype: str,
        worker_extension_cls: str,
        tensor_parallel_size: int,
        gpu_memory_utilization: float,
        enforce_eager: bool,
        enable_prefix_caching: bool,
        generation_config: str,
        trust_remote_code: bool,
        seed: int,
        max_model_len: int | None = None,
    ) -> None:
        from transformers import AutoTokenizer

        print("INFO vLLM stand-in starts, and says so where it likes")
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        if fault() == "no start":
            raise RuntimeError("Free memory on device is less than desired GPU memory utilization")
        module, _, name = worker_extension_cls.rpartition(".")
        extension = getattr(importlib.import_module(module), name)
        for attribute in dir(extension):
            assert attribute.startswith("__") or not hasattr(Worker, attribute), attribute
        self._worker: Any = type("Worker", (Worker, extension), {})(FusedLlama(model, getattr(torch, dtype)))
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self._cache: dict[tuple[str | None, tuple[int, ...]], Any] = {}
        self._end = self._tokenizer.eos_token_id
        # As the workers of several GPUs: something that must not outlive this process.
        place = os.environ.get("VLLM_STANDIN_FAULT", "")
        os.spawnlp(os.P_NOWAIT, "sh", "sh", "-c", "sleep 600; :", f"child of {place}")

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        print(f"INFO {method}")
        return [getattr(self._worker, method)(*args)]

    def reset_prefix_cache(self) -> bool:
        if fault() == "reset refused":
            return False
        if fault() != "reset forgotten":
            self._cache.clear()
        return True

    def generate(
        self, prompts: list[dict[str, Any]], sampling_params: list[SamplingParams], use_tqdm: bool = True
    ) -> list[RequestOutput]:
        print("INFO generating")
        outputs = []
        for number, (prompt, parameters) in enumerate(zip(prompts, sampling_params, strict=True)):
            assert parameters.temperature == 0.0
            outputs.append(RequestOutput(prompt["prompt_token_ids"], [self._one(prompt, parameters)]))
            if number == 1 and prompt.get("cache_salt") is None and parameters.logprobs is None:
                break_down()
        return outputs

    @torch.no_grad()
    def _one(self, prompt: dict[str, Any], parameters: SamplingParams) -> CompletionOutput:
        ids, salt = prompt["prompt_token_ids"], prompt.get("cache_salt")
        cache, known = self._known(ids, salt)
        ends = {self._end, *(parameters.stop_token_ids or ())}
        tokens: list[int] = []
        logprobs: list[dict[int, Logprob]] = []
        step, reason, text = ids[known:], "length", ""
        while len(tokens) < parameters.max_tokens:
            logits = self._worker.get_model()(step, cache)
            token = int(logits.argmax())
            tokens.append(token)
            logprobs.append({token: Logprob(float(logits.float().log_softmax(-1)[token]))})
            if len(tokens) == 1:
                self._remember(ids, salt, cache)
            text = decode(self._tokenizer, ids, tokens)
            if token in ends or any(stop in text for stop in parameters.stop or ()):
                reason = "stop"
                break
            step = [token]
        return CompletionOutput(tokens, text, reason, None if parameters.logprobs is None else logprobs)

    def _known(self, ids: list[int], salt: str | None) -> tuple[Any, int]:
        from transformers import DynamicCache

        for length in range((len(ids) - 1) // BLOCK * BLOCK, 0, -BLOCK):
            found = self._cache.get((salt, tuple(ids[:length])))
            if found is not None:
                cache = DynamicCache()
                for layer, (keys, values) in enumerate(found):
                    cache.update(keys.clone(), values.clone(), layer)
                return cache, length
        return DynamicCache(), 0

    def _remember(self, ids: list[int], salt: str | None, cache: Any) -> None:
        for length in range(BLOCK, len(ids) + 1, BLOCK):
            self._cache.setdefault((salt, tuple(ids[:length])), keys_and_values(cache, length))


def fault() -> str:
    """What is to go wrong, as a file says whose name the tests hand over."""
    place = os.environ.get("VLLM_STANDIN_FAULT")
    return Path(place).read_text() if place and Path(place).exists() else ""


def break_down() -> None:
    """Die, hang or raise in the middle of a call, once."""
    kind = fault()
    if kind not in ("dies", "hangs", "raises"):
        return
    Path(os.environ["VLLM_STANDIN_FAULT"]).unlink()
    if kind == "hangs":
        time.sleep(600)
    if kind == "raises":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    print("ERROR the engine is about to die", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
