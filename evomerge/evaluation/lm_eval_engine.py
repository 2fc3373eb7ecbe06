"""Generation requests of lm-eval tasks, answered by an engine outside this process.

Prompts, their truncation, stop strings and what is kept of an answer are those of lm-eval's HuggingFace class, so an
engine that generates the same tokens gives the same text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import postprocess_generated_text

from evomerge.errors import UserError
from evomerge.evaluation.greedy_decoding import end_token_ids
from evomerge.evaluation.lm_eval_scorer import PreparedRequests, PreparedScorer
from evomerge.evaluation.text_engine import TextEngine, safe_stops


@dataclass(frozen=True)
class TextGroup:
    """Requests with the same generation arguments.

    Attributes:
        members: the requests, by number.
        prompts: token ids of each.
        stops: strings that end an answer.
        max_new_tokens: longest answer.
    """

    members: tuple[int, ...]
    prompts: tuple[tuple[int, ...], ...]
    stops: tuple[str, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class EngineRequests(PreparedRequests):
    """Requests laid out for the engine."""

    groups: tuple[TextGroup, ...] = ()


class EngineScorer(PreparedScorer):
    """lm-eval's HuggingFace class around a model without weights, whose texts an engine generates.

    Args:
        model: the model on the meta device, with its generation config.
        tokenizer: its tokenizer.
        engine: generates.
    """

    def __init__(self, model: Any, tokenizer: Any, engine: TextEngine) -> None:
        super().__init__(model, tokenizer)
        self._engine = engine

    @property
    def notes(self) -> dict[str, str]:
        """See `PreparedScorer.notes`."""
        return {"generate_until": f"{self._engine.label}, in every split; nothing is scored by lm-eval's own loops"}

    def prepare(
        self, groups: Sequence[Sequence[Instance]], batch_size: int | None = None, exact: bool = False
    ) -> list[PreparedRequests]:
        """See `PreparedScorer.prepare`; ``batch_size`` and ``exact`` do not count, the engine lays out its batches.

        Raises:
            UserError: requests that only the ``hf`` backend answers.
        """
        instances = [instance for group in groups for instance in group]
        others = {one.task_name: one.request_type for one in instances if one.request_type != "generate_until"}
        for task, kind in others.items():
            raise UserError(f"task {task} asks for {kind}, which {self._engine.label} is not used for: {USE_HF}")
        requests = [instance for instance in instances for _ in range(instance.repeats or 1)]
        grouped: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            key = json.dumps(request.args[1], sort_keys=True, default=str)
            grouped.setdefault(f"{request.task_name} {key}", []).append(index)
        laid_out = tuple(self._group(requests, members) for members in grouped.values())
        return [EngineRequests("generate_until", requests, 1, groups=laid_out)] if requests else []

    def _group(self, requests: Sequence[Instance], members: Sequence[int]) -> TextGroup:
        prompts, stops, new_tokens, reason = self._wanted(requests, members)
        task = requests[members[0]].task_name
        if reason is not None:
            raise UserError(f"task {task}: {self._engine.label} would not give lm-eval's text: {reason}; {USE_HF}")
        longest, most = max(map(len, prompts)) + new_tokens, self._engine.max_length
        if most is not None and longest > most:
            raise UserError(
                f"runtime.vllm.max_model_len: {most} is too short for task {task}, whose longest prompt with its "
                f"answer has {longest} tokens"
            )
        return TextGroup(tuple(members), tuple(map(tuple, prompts)), tuple(stops), new_tokens)

    def score(self, prepared: PreparedRequests, seed: int = 0) -> list[Any]:
        """See `PreparedScorer.score`."""
        assert isinstance(prepared, EngineRequests)
        texts = [""] * len(prepared.requests)
        for group in prepared.groups:
            for member, tokens in zip(group.members, self._answers(group), strict=True):
                texts[member] = postprocess_generated_text(self.tok_decode(tokens), list(group.stops), None)
        return texts

    def _answers(self, group: TextGroup) -> list[list[int]]:
        ends = sorted(end_token_ids(self.model))
        counts = [group.max_new_tokens] * len(group.prompts)
        answers = self._engine.generate(group.prompts, safe_stops(group.stops), ends, counts)
        # An engine decodes an answer behind its prompt and may see a stop string (a leading space, say) that lm-eval,
        # which decodes the answer alone, does not see: then it goes on to the end.
        early = [row for row, tokens in enumerate(answers) if not self._is_finished(tokens, group, ends)]
        if early:
            prompts = [[*group.prompts[row], *answers[row]] for row in early]
            counts = [group.max_new_tokens - len(answers[row]) for row in early]
            for row, more in zip(early, self._engine.generate(prompts, (), ends, counts), strict=True):
                answers[row] = [*answers[row], *more]
        return answers

    def _is_finished(self, tokens: Sequence[int], group: TextGroup, ends: Sequence[int]) -> bool:
        if len(tokens) >= group.max_new_tokens or (tokens and tokens[-1] in ends):
            return True
        text = self.tok_decode(list(tokens))
        return any(stop in text for stop in group.stops if stop)


USE_HF = "use runtime.backend: hf"
