"""Fitness from what a model costs: ``num_hops``, ``num_parameters``, ``flops_per_token``, ``latency``; or a penalty.

All are to be lowered, have no documents, and are the same in every split. The first three are counted, exactly and
without running anything. ``mean_magnitude`` of a hyperparameter is the mean of ``|value|`` in the recipe, over experts
and tensors: with a weight, an L1 penalty; 0 for recipes without it. ``latency`` is measured: the median wall time of a
forward over one fixed prompt. It depends on the machine and on what else runs there, so it differs from one evaluation
to the next; compare values of one run on an idle machine only, and prefer ``flops_per_token`` where the search itself
has to be repeatable.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any, Protocol

from evomerge.errors import InvalidInput, Problem
from evomerge.evaluation.documents import FitnessPlan
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.evaluation.known_answers import KnownAnswers
from evomerge.evaluation.task_scores import ObjectiveScore
from evomerge.terms import ModelCost, Objective, SplitName


class CostMeter(Protocol):
    """Counts what the live model costs now."""

    def __call__(self, context: int, with_magnitudes: bool = False) -> ModelCost:
        """The cost at a context length, and the recipe's magnitudes where asked for."""
        ...


DEFAULT_CONTEXT = 512
DEFAULT_TOKENS = 128
DEFAULT_REPEATS = 5
UNITS = {
    "num_hops": "hops",
    "num_parameters": "parameters",
    "flops_per_token": "FLOP",
    "latency": "ms",
    "mean_magnitude": "",
}


def plan_cost(config: FitnessConfig) -> FitnessPlan:
    """The plan of a cost: no documents."""
    assert config.cost is not None
    return FitnessPlan(config.name, (), metric=config.cost, higher_is_better=False)


class CostFitness:
    """One cost of the live model."""

    def __init__(self, config: FitnessConfig) -> None:
        assert config.cost is not None
        self._name, self._cost = config.name, config.cost
        self._context = config.context or DEFAULT_CONTEXT
        self._tokens = config.tokens or DEFAULT_TOKENS
        self._repeats = config.repeats or DEFAULT_REPEATS
        self._parameter = config.parameter
        self._meter: CostMeter | None = None
        self._model: Any = None
        self.objectives = (Objective(config.name, False, config.weight, UNITS[config.cost]),)

    def use(self, meter: CostMeter | None) -> None:
        """Count with this meter from now on."""
        self._meter = meter

    def bind(self, model: Any, tokenizer: Any) -> None:
        """Use this model from now on.

        Raises:
            InvalidInput: the prompt is longer than the model's positions.
        """
        self._model = model
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if self._cost == "latency" and isinstance(limit, int) and self._tokens > limit:
            message = f"the model has {limit} positions, got {self._tokens}; set `tokens: {limit}` or fewer"
            raise InvalidInput([Problem(f"fitness {self._name}: tokens", message)])

    def score(self, role: SplitName, seed: int, known: KnownAnswers | None = None) -> list[ObjectiveScore]:
        """The cost of the model as it is now, or as it was counted before; latency is measured every time.

        Raises:
            NotKnown: it is not known, and nothing may be computed.
        """
        value = None
        part = {"is": "cost", "cost": self._cost, "context": self._context, "parameter": self._parameter}
        if known is not None and self._cost == "latency":
            known.must_compute()
        elif known is not None:
            value = known.find(part, lambda kept: kept if type(kept) is float and math.isfinite(kept) else None)
        if value is None:
            value = self._measured() if self._cost == "latency" else self._counted()
            if known is not None and self._cost != "latency":
                known.keep(part, value)
        return [ObjectiveScore(self._name, value, None, {f"{self._name}/value": value})]

    def _counted(self) -> float:
        assert self._meter is not None, "bind() takes `cost` where a fitness counts costs"
        if self._parameter is not None:
            return self._meter(self._context, with_magnitudes=True).magnitudes.get(self._parameter, 0.0)
        return float(getattr(self._meter(self._context), self._cost))

    def _measured(self) -> float:
        """Median milliseconds of a forward, after one that is not counted."""
        import torch

        device = next(self._model.parameters()).device
        words = self._model.get_input_embeddings().num_embeddings
        ids = (torch.arange(self._tokens, device=device) % words)[None]
        inputs = {"input_ids": ids, "use_cache": False}
        if self._model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        milliseconds = []
        for _ in range(self._repeats + 1):
            started = time.perf_counter()
            # Not a call of the model: its hooks may keep hidden states of earlier forwards and skip what gave them.
            self._model.forward(**inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            milliseconds.append(1000.0 * (time.perf_counter() - started))
        return statistics.median(milliseconds[1:])
