"""A model that lives in vLLM: what a worker merges into and asks, in place of a live model of its own."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch

from evomerge.engine.adapted_models import check_live
from evomerge.engine.architecture import Architecture, build_on_meta, config_facts, load_config
from evomerge.engine.depth_groups import DepthGroups
from evomerge.engine.live_model import choose_dtype, load_tokenizer
from evomerge.engine.model_cost import model_cost
from evomerge.engine.recipe_magnitudes import mean_magnitudes
from evomerge.engine.sources import resolve_source
from evomerge.errors import MergeFailed, UserError
from evomerge.recipes.recipe import Merge, Node, Recipe, Route, Source, children
from evomerge.recipes.recipe_yaml import format_recipe
from evomerge.runtime.vllm_check import NEW_TOKENS, Answers, check_prompts, swap_problem
from evomerge.runtime.vllm_client import START_SECONDS, VllmServer
from evomerge.runtime.vllm_extension import why_unsupported
from evomerge.runtime.vllm_settings import VllmSettings
from evomerge.terms import HopCounts, ModelCost


@dataclass(frozen=True)
class VllmModels:
    """Which models, and how they are held.

    Attributes:
        base: lends architecture and tokenizer; None = the first expert does.
        experts: every other model that recipes will merge.
        dtype: as for a live model.
        device: ``cpu`` or ``cuda``.
        threads: torch threads of the merge on CPU.
        state_memory_bytes: cap on prepared merge state, None = half of what vLLM leaves free.
        import_paths: folders of the user's own merge methods.
    """

    base: Source | None
    experts: tuple[tuple[str, Source], ...]
    dtype: str
    device: str
    threads: int
    state_memory_bytes: int | None
    import_paths: tuple[str, ...]


class VllmModel:
    """Has of `LiveModel` what a worker uses, and generates (`TextEngine`). ``model`` has no weights."""

    def __init__(self, settings: VllmSettings, models: VllmModels) -> None:
        """Start vLLM, load the reference and see whether swapping weights works.

        Raises:
            UserError: models that do not fit together or that vLLM is not used for, or an engine that fails the check.
            WorkerBroken: vLLM does not start.
        """
        sources = [source for _, source in models.experts]
        self.reference = models.base if models.base is not None else sources[0]
        opened = DepthGroups(self.reference, sources, any_depth=False).main
        self.architecture: Architecture = opened.architecture
        self._directory = resolve_source(self.reference)
        self._check_kind()
        config = load_config(self._directory)
        self.model: Any = build_on_meta(config, self._directory).eval()
        self.model.generation_config = self._generation_config(config)
        self.device = torch.device(models.device)
        self.dtype = choose_dtype(models.dtype, self.device, opened.get(self.reference).stored_dtype)
        self.model_bytes = sum(parameter.numel() for parameter in self.model.parameters()) * self.dtype.itemsize
        self.label, self.max_length, self.seconds = settings.label, settings.max_model_len, 0.0
        self._state_bytes = 0
        self._recipe = Recipe(self.reference)
        self._server = VllmServer(settings)
        try:
            self._open(settings, models, sources)
            self._check(has_adapter=opened.get(self.reference).adapter is not None)
        except BaseException:
            self.close()
            raise

    @cached_property
    def tokenizer(self) -> Any:
        """The reference model's tokenizer.

        Raises:
            UserError: the reference has none.
        """
        return load_tokenizer(self._directory)

    @property
    def memory_plan(self) -> str:
        """One line: where the model is."""
        size, state = f"{self.model_bytes / 1e6:,.0f} MB", f"{self._state_bytes / 1e6:,.0f} MB"
        dtype = str(self.dtype).removeprefix("torch.")
        where = f"{self.label} in a process of its own (pid {self._server.pid})"
        return f"{where}: model {size} ({dtype}, {self.device}); prepared merge state {state}"

    def apply(self, recipe: Recipe) -> float:
        """Make the engine's model this recipe's merge. See `LiveModel.apply`.

        Returns:
            Seconds it took.

        Raises:
            MergeFailed: hyperparameters or merged weights are NaN or infinite.
            UserError: the recipe does not fit, or is a route.
            WorkerBroken: the engine is lost.
        """
        if isinstance(recipe.model, Route):
            raise UserError("routes through blocks need runtime.backend: hf")
        check_live(recipe)
        _refuse_non_finite(recipe.model)
        started = time.perf_counter()
        found = self._server.ask("apply", recipe=format_recipe(recipe))
        self._state_bytes = int(found["state_bytes"])
        self._recipe = recipe
        return time.perf_counter() - started

    def cost(self, context: int, with_magnitudes: bool = False) -> ModelCost:
        """See `LiveModel.cost`."""
        counted = model_cost(self.model, self.architecture, context)
        if not with_magnitudes:
            return counted
        return replace(counted, magnitudes=mean_magnitudes(self._recipe.model, self.architecture))

    def generate(
        self, prompts: Sequence[Sequence[int]], stops: Sequence[str], ends: Sequence[int], max_new_tokens: Sequence[int]
    ) -> list[list[int]]:
        """See `TextEngine.generate`."""
        started = time.perf_counter()
        found = self._server.ask(
            "generate", prompts=list(map(list, prompts)), stops=list(stops), ends=list(ends),
            max_new_tokens=list(max_new_tokens),
        )  # fmt: skip
        self.seconds += time.perf_counter() - started
        answers = [[int(token) for token in entry["tokens"]] for entry in found["answers"]]
        assert len(answers) == len(prompts)
        return answers

    def take_hop_counts(self) -> HopCounts:
        """None: there are no routes."""
        return HopCounts()

    def drop_prefixes(self) -> None:
        """Nothing: there are no routes."""

    @contextmanager
    def out_of_route(self) -> Iterator[None]:
        """Nothing: there are no routes."""
        yield

    def close(self) -> None:
        """End the vLLM process."""
        self._server.close()

    def _check_kind(self) -> None:
        facts = config_facts(self._directory)
        config = json.loads((self._directory / "config.json").read_text()) if facts is not None else {}
        reason = "transformers does not know it" if facts is None else why_unsupported(config)
        if reason is None and facts is not None and facts.claims_tied != self.architecture.is_tied:
            reason = "its head is tied to the embeddings and another model's is not"
        if reason is not None:
            raise UserError(f"{self.reference}: {reason}; vLLM is used for plain dense models. Use runtime.backend: hf")

    def _generation_config(self, config: Any) -> Any:
        from transformers import GenerationConfig

        if (self._directory / "generation_config.json").is_file():
            return GenerationConfig.from_pretrained(str(self._directory), local_files_only=True)
        return GenerationConfig.from_model_config(config)

    def _open(self, settings: VllmSettings, models: VllmModels, sources: Sequence[Source]) -> None:
        engine = {
            "model": str(self._directory),
            "tokenizer": str(self._directory),
            "dtype": str(self.dtype).removeprefix("torch."),
            "tensor_parallel_size": settings.tensor_parallel,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "enforce_eager": settings.enforce_eager,
            "enable_prefix_caching": True,
            # Nothing of the model's own sampling defaults.
            "generation_config": "vllm",
            "trust_remote_code": False,
            "seed": 0,
        }
        if settings.max_model_len is not None:
            engine["max_model_len"] = settings.max_model_len
        plan = {
            "reference": asdict(self.reference),
            "sources": [asdict(source) for source in sources],
            "import_paths": list(models.import_paths),
            "state_memory_bytes": models.state_memory_bytes,
            "threads": models.threads,
        }
        found = self._server.ask("open", START_SECONDS, engine=engine, models=plan)
        self.label = f"vllm {found['version']}"

    def _check(self, has_adapter: bool) -> None:
        """Refuse an engine that does not score what it was given.

        Raises:
            UserError: saying what is wrong.
        """
        config = self.model.config.get_text_config()
        longest = self.max_length or getattr(config, "max_position_embeddings", None) or 1 << 20
        prompts = check_prompts(config.vocab_size, longest)
        counts = [NEW_TOKENS] * len(prompts)

        def ask(salt: str | None) -> Answers:
            found = self._server.ask(
                "generate", prompts=prompts, stops=[], ends=[], max_new_tokens=counts, salt=salt, logprobs=True
            )
            return Answers.of(found["answers"])

        problem = swap_problem(self.apply, ask, self.reference, loaded=not has_adapter)
        if problem is not None:
            raise UserError(f"{self.label} cannot score this model here: {problem}. Use runtime.backend: hf")


def _refuse_non_finite(node: Node) -> None:
    """A recipe with such numbers cannot be written down, and would fail as any merge of them does.

    Raises:
        MergeFailed: naming the hyperparameter.
    """
    for name, rules in node.parameters if isinstance(node, Merge) else ():
        for rule in rules:
            numbers = rule.value if isinstance(rule.value, tuple) else (rule.value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise MergeFailed(f"{name} is {rule.value}; expected finite numbers")
    for child in children(node):
        _refuse_non_finite(child)
