"""The scorer: lm-eval's own HuggingFace model class, with requests prepared once and faster loops over them."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from evomerge.evaluation.engine_choice import STOCK, EngineChooser
from evomerge.evaluation.failures import ScoringFailed
from evomerge.evaluation.greedy_decoding import BlockPlanner, GenerationPlan, generate, why_not_greedy
from evomerge.evaluation.likelihood_pass import PassSize
from evomerge.evaluation.lm_eval_tasks import lm_eval_conditions
from evomerge.evaluation.request_plans import (
    LoglikelihoodPlan,
    Tokens,
    as_document,
    plan_loglikelihood,
    run_loglikelihood,
)
from evomerge.evaluation.self_check import answers_disagree, failed_check, texts_disagree
from evomerge.terms import FailureKind

RequestKind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]
Check = Callable[[], str | None]

BLOCK_DOCUMENTS = 64  # documents that are laid out together
STOCK_ROWS = 32
GENERATION_ROWS = {"cpu": 64, "cuda": 256}
_CACHE_BYTES = {"cpu": 2**29, "cuda": 2**33}  # of a block's keys and values


@dataclass(frozen=True)
class PreparedRequests:
    """Requests of one kind, ready to run.

    Attributes:
        kind: lm-eval's request type.
        requests: the instances, each as often as it repeats.
        batch_size: rows of a forward pass of lm-eval's own loop.
        loglikelihood: the passes.
        owners: the request of each answer of ``loglikelihood``: a long text has several windows.
        generation: the blocks; without passes and blocks lm-eval's own loop runs.
    """

    kind: RequestKind
    requests: list[Instance]
    batch_size: int
    loglikelihood: LoglikelihoodPlan | None = None
    owners: tuple[int, ...] = ()
    generation: GenerationPlan | None = None

    @property
    def engine(self) -> str:
        """The engine that runs them."""
        plan = self.loglikelihood or self.generation
        return STOCK if plan is None else plan.engine

    @property
    def is_sampled(self) -> bool:
        """Whether an answer depends on a random generator."""
        if self.kind != "generate_until" or self.generation is not None:
            return False
        distinct = {json.dumps(request.args[1], sort_keys=True, default=str): request for request in self.requests}
        return any(normalize_gen_kwargs(request.args[1]).get("do_sample") for request in distinct.values())


@dataclass(frozen=True)
class _Asked:
    """All requests of one kind.

    Attributes:
        kind: lm-eval's request type.
        requests: the instances, each as often as it repeats.
        document_ends: 0, then the number of requests up to the end of each document.
        block_ends: 0, then the number of documents up to the end of each block.
        batch_size: rows of a forward pass, None = the scorer's.
    """

    kind: RequestKind
    requests: list[Instance]
    document_ends: list[int]
    block_ends: list[int]
    batch_size: int | None

    @classmethod
    def of(cls, kind: RequestKind, groups: Sequence[Sequence[Instance]], batch_size: int | None) -> _Asked:
        """The requests of one kind among all; a block is never of two tasks."""
        requests: list[Instance] = []
        document_ends, block_ends = [0], [0]
        task = None
        for group in groups:
            mine = [instance for instance in group if instance.request_type == kind]
            if not mine:
                continue
            place = len(document_ends) - 1
            if place > block_ends[-1] and (mine[0].task_name != task or place - block_ends[-1] == BLOCK_DOCUMENTS):
                block_ends.append(place)
            task = mine[0].task_name
            requests += [instance for instance in mine for _ in range(instance.repeats or 1)]
            document_ends.append(len(requests))
        block_ends.append(len(document_ends) - 1)
        return cls(kind, requests, document_ends, block_ends, batch_size)


class PreparedScorer(HFLM):  # type: ignore[misc]
    """HFLM around one live model whose weights change between candidates.

    Args:
        model: the live model.
        tokenizer: its tokenizer.
        batch_size: rows of a forward pass, None = a default for each kind of request.
        exact: lm-eval's own loops for everything.
        pass_tokens: most tokens of a forward pass, None = what suits the device.
        chooser: what an earlier scorer found out about this model; None = nothing is known.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_size: int | None = None,
        exact: bool = False,
        pass_tokens: int | None = None,
        chooser: EngineChooser | None = None,
    ) -> None:
        with lm_eval_conditions():
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size or STOCK_ROWS)
        # Requests are laid out for the model as it is now: a candidate may change how many blocks run.
        self.chooser = chooser or EngineChooser(copy.deepcopy(model.config))
        self._asked_batch_size = batch_size
        self._pass_tokens = pass_tokens
        self._exact = exact
        self._captured: list[Any] | None = None

    @property
    def notes(self) -> dict[str, str]:
        """Each kind of request, the engine that scores it, and why it is not a faster one."""
        return self.chooser.notes

    def prepare(
        self, groups: Sequence[Sequence[Instance]], batch_size: int | None = None, exact: bool = False
    ) -> list[PreparedRequests]:
        """Tokenise and lay out the requests of documents, once.

        An engine is tried on a few requests first; where it does not give lm-eval's answers, the next one is taken.

        Args:
            groups: the instances of each document, in document order.
            batch_size: rows of a forward pass, None = the scorer's.
            exact: lm-eval's own loops.

        Returns:
            One entry for each kind of request.
        """
        kinds = dict.fromkeys(instance.request_type for group in groups for instance in group)
        return [self._prepare_kind(_Asked.of(kind, groups, batch_size), exact) for kind in kinds]

    def conditions(self, prepared: PreparedRequests, batch_size: int | None = None) -> dict[str, Any]:
        """What answers depend on beside the model and the requests, as JSON data.

        Args:
            prepared: what `prepare` gave.
            batch_size: what `prepare` was called with.
        """
        return {
            "scorer": type(self).__name__,
            "engine": prepared.engine,
            "exact": self._exact,
            "rows": [prepared.batch_size, batch_size or self._asked_batch_size],
            "pass_tokens": self._pass_tokens,
            "max_length": self.max_length,
            "add_bos_token": self.add_bos_token,
        }

    def _prepare_kind(self, asked: _Asked, exact: bool) -> PreparedRequests:
        rows = asked.batch_size or self._asked_batch_size
        if exact or self._exact:
            return PreparedRequests(asked.kind, asked.requests, rows or STOCK_ROWS)
        size = PassSize.of(self.device, rows, self._pass_tokens)
        lay_out = self._lay_out_texts if asked.kind == "generate_until" else self._lay_out_likelihoods
        while True:
            prepared, check = lay_out(asked, size, rows)
            reason = failed_check(check) if check is not None else None
            if reason is None:
                return prepared
            self.chooser.rule_out(asked.kind, prepared.engine, reason)

    def _lay_out_likelihoods(
        self, asked: _Asked, size: PassSize, rows: int | None
    ) -> tuple[PreparedRequests, Check | None]:
        stock = PreparedRequests(asked.kind, asked.requests, rows or STOCK_ROWS)
        pairs, counts = self._tokenise(asked)
        starts = list(itertools.accumulate(counts, initial=0))
        documents = [
            as_document(pairs[starts[first] : starts[last]], starts[first], self.max_length)
            for first, last in itertools.pairwise(asked.document_ends)
        ]
        longest = max((len(scored.inputs) for document in documents for scored in document), default=0)
        choice = self.chooser.choose(asked.kind, self.model, longest)
        if choice.engine == STOCK:
            return stock, None
        blocks = [tuple(documents[first:last]) for first, last in itertools.pairwise(asked.block_ends)]
        plan = plan_loglikelihood(blocks, choice.engine, size, self.device)
        owners = tuple(request for request, count in enumerate(counts) for _ in range(count))
        check = None
        if self.chooser.needs_check(asked.kind, choice.engine, longest):
            check = functools.partial(answers_disagree, self.model, choice.engine, blocks, self._stock_tokens, size)
        return replace(stock, loglikelihood=plan, owners=owners), check

    def _tokenise(self, asked: _Asked) -> tuple[list[Tokens], list[int]]:
        """Context and continuation tokens exactly as lm-eval makes them, and how many pairs each request has."""
        captured: list[Any] = []
        self._captured = captured
        counts = []
        try:
            if asked.kind == "loglikelihood":
                TemplateLM.loglikelihood(self, list(asked.requests), disable_tqdm=True)
                counts = [1] * len(captured)
            else:
                for request in asked.requests:
                    before = len(captured)
                    HFLM.loglikelihood_rolling(self, [request], disable_tqdm=True)
                    counts.append(len(captured) - before)
        finally:
            self._captured = None
        return [(list(context), list(continuation)) for _, context, continuation in captured], counts

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        if self._captured is not None:
            self._captured += requests
            return [(0.0, False)] * len(requests)
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def _stock_tokens(self, requests: Any) -> Any:
        return HFLM._loglikelihood_tokens(self, requests, disable_tqdm=True)

    def _lay_out_texts(self, asked: _Asked, size: PassSize, rows: int | None) -> tuple[PreparedRequests, Check | None]:
        """Blocks of requests with the same generation arguments, in document order."""
        stock = PreparedRequests(asked.kind, asked.requests, rows or STOCK_ROWS)
        grouped: dict[str, list[int]] = {}
        for index, request in enumerate(asked.requests):
            key = json.dumps(request.args[1], sort_keys=True, default=str)
            grouped.setdefault(f"{request.task_name} {key}", []).append(index)
        wanted = [self._wanted(asked.requests, members) for members in grouped.values()]
        reasons = [reason for _, _, _, reason in wanted if reason is not None]
        longest = max(
            (len(prompt) + new_tokens for prompts, _, new_tokens, _ in wanted for prompt in prompts), default=0
        )
        choice = self.chooser.choose(asked.kind, self.model, longest, reasons[0] if reasons else None)
        if choice.engine == STOCK:
            return stock, None
        planner = BlockPlanner(choice.engine, self.tokenizer.pad_token_id, size, self.device)
        for members, (prompts, stops, new_tokens, _) in zip(grouped.values(), wanted, strict=True):
            count = -(-len(members) // (rows or self._generation_rows(max(map(len, prompts)) + new_tokens)))
            bounds = [len(members) * part // count for part in range(count + 1)]
            for start, end in itertools.pairwise(bounds):
                planner.add(prompts[start:end], members[start:end], stops, new_tokens)
        plan, check = planner.plan(), None
        if self.chooser.needs_check(asked.kind, choice.engine, longest):
            check = functools.partial(texts_disagree, self.model, self.tokenizer, choice.engine, plan.blocks, size)
        return replace(stock, generation=plan), check

    def _wanted(
        self, requests: Sequence[Instance], members: Sequence[int]
    ) -> tuple[list[list[int]], list[str], int, str | None]:
        """Prompts, stop strings, longest answer, and why only lm-eval's own loop can answer."""
        arguments = normalize_gen_kwargs(requests[members[0]].args[1], self.max_gen_toks)
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        stops = handle_stop_sequences(arguments.pop("until", None), eos=eos)
        new_tokens = arguments.pop("max_gen_toks")
        sampled = arguments.pop("do_sample", False)
        others = sorted(key for key in arguments if key not in ("temperature", "top_p", "top_k"))
        reason = "sampling is asked for" if sampled else f"generation argument {others[0]!r}" if others else None
        if self.max_length <= new_tokens:
            reason = "max_gen_toks leaves no room for the prompt"
        prompts = [] if reason else self._prompts([requests[index] for index in members], new_tokens)
        return prompts, stops, new_tokens, reason or why_not_greedy(self.model, self.tokenizer, stops)

    def _prompts(self, requests: Sequence[Instance], new_tokens: int) -> list[list[int]]:
        """Prompt tokens as lm-eval encodes them, cut on the left to leave room for the answer."""
        prompts = []
        for request in requests:
            ids, _ = self.tok_batch_encode([request.args[0]], truncation=self.truncation)
            prompts.append(ids[0].tolist()[-(self.max_length - new_tokens) :])
        return prompts

    def _generation_rows(self, longest: int) -> int:
        """Rows of a block: as many as keep its cache small; the same on every machine."""
        config = self.chooser.config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        row = 2 * config.num_hidden_layers * heads * size * longest * self.model.dtype.itemsize
        kind = "cuda" if self.device.type == "cuda" else "cpu"
        return int(max(1, min(GENERATION_ROWS[kind], _CACHE_BYTES[kind] // row)))

    def score(self, prepared: PreparedRequests, seed: int = 0) -> list[Any]:
        """Answers of the live model, in request order.

        Args:
            prepared: what `prepare` gave.
            seed: of the random generator, where a request asks for sampling.

        Raises:
            ScoringFailed: the model's numbers are not finite.
        """
        if prepared.loglikelihood is not None:
            answers = run_loglikelihood(self.model, prepared.loglikelihood)
            if prepared.kind == "loglikelihood":
                return list(answers)
            totals = [0.0] * len(prepared.requests)
            for owner, (total, _) in zip(prepared.owners, answers, strict=True):
                totals[owner] += total
            return list(totals)
        if prepared.generation is not None:
            return self._generate(prepared.generation, len(prepared.requests))
        return self._stock(prepared, seed)

    def _generate(self, plan: GenerationPlan, num_requests: int) -> list[str]:
        texts = [""] * num_requests
        for block, answers in zip(plan.blocks, generate(self.model, self.tokenizer, plan), strict=True):
            for request, tokens in zip(block.requests, answers, strict=True):
                texts[request] = postprocess_generated_text(self.tok_decode(tokens), list(block.stops), None)
        return texts

    def _stock(self, prepared: PreparedRequests, seed: int) -> list[Any]:
        """lm-eval's own loop, with its own random state put aside."""
        self.batch_size_per_gpu = prepared.batch_size
        devices = [self.device] if self.device.type == "cuda" else []
        run = getattr(HFLM, prepared.kind)
        with lm_eval_conditions(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            if prepared.kind == "generate_until":
                self._refuse_non_finite(prepared.requests[0])
            answers: list[Any] = run(self, prepared.requests, disable_tqdm=True)
        return answers

    @torch.no_grad()
    def _refuse_non_finite(self, request: Instance) -> None:
        """Generated text hides numbers that are not finite; look at one prompt's logits."""
        ids, mask = self.tok_batch_encode([request.args[0]])
        output = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        if not bool(torch.isfinite(output.logits).all()):
            raise ScoringFailed(FailureKind.NON_FINITE, "the model gives logits that are not finite")

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """lm-eval's entry point, through the prepared loop."""
        return self._at_once("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """lm-eval's entry point, through the prepared loop."""
        return self._at_once("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """lm-eval's entry point, through the prepared loop."""
        return self._at_once("generate_until", requests)

    def _at_once(self, kind: RequestKind, requests: list[Instance]) -> list[Any]:
        if self._captured is not None or self._exact:
            answers: list[Any] = getattr(HFLM, kind)(self, requests, disable_tqdm=True)
            return answers
        # Repeats are already spelled out here, so each request is a document of its own.
        once = [Instance(kind, request.doc, request.arguments, request.idx, (None, None, 1)) for request in requests]
        [prepared] = self.prepare([[instance] for instance in once])
        return self.score(prepared)
