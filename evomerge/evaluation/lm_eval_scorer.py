"""The scorer: lm-eval's own HuggingFace model class, with requests prepared once and faster loops over them."""

from __future__ import annotations

import copy
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from evomerge.evaluation.failures import ScoringFailed
from evomerge.evaluation.greedy_decoding import GenerationBlock, generate_block, plan_block, why_not_greedy
from evomerge.evaluation.lm_eval_tasks import lm_eval_conditions
from evomerge.evaluation.request_plans import LoglikelihoodPlan, PassSize, plan_loglikelihood, run_loglikelihood
from evomerge.terms import FailureKind

logger = logging.getLogger(__name__)

RequestKind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]

BLOCK_DOCUMENTS = 64  # documents whose log-likelihood requests are batched together
STOCK_ROWS = 32
GENERATION_ROWS = {"cpu": 64, "cuda": 256}
_CACHE_BYTES = {"cpu": 2**28, "cuda": 2**33}  # of a block's keys and values
_CHECKED_REQUESTS = 4
_CHECKED_PROMPTS = 3
_CHECKED_TOKENS = 5


@dataclass(frozen=True)
class PreparedRequests:
    """Requests of one kind, ready to run.

    Attributes:
        kind: lm-eval's request type.
        requests: the instances, each as often as it repeats.
        batch_size: rows of a forward pass of lm-eval's own loop.
        loglikelihood: the passes, when the head-skipping loop runs them.
        blocks: the blocks, when the greedy loop runs them; with neither, lm-eval's own loop does.
    """

    kind: RequestKind
    requests: list[Instance]
    batch_size: int
    loglikelihood: LoglikelihoodPlan | None = None
    blocks: tuple[GenerationBlock, ...] = field(default=())


class PreparedScorer(HFLM):  # type: ignore[misc]
    """HFLM around one live model whose weights change between candidates.

    Args:
        model: the live model.
        tokenizer: its tokenizer.
        batch_size: rows of a forward pass, None = a default for each kind of request.
        exact: lm-eval's own loops for everything.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int | None = None, exact: bool = False) -> None:
        with lm_eval_conditions():
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size or STOCK_ROWS)
        # Requests are laid out for the model as it is now: a candidate may change how many blocks run.
        self._plain_config = copy.deepcopy(model.config)
        self._asked_batch_size = batch_size
        self._exact = exact
        self._captured: list[Any] | None = None
        self._slow: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._checked: set[str] = set()
        if self.backend != "causal":
            self._slow = dict.fromkeys(("loglikelihood", "generate_until"), "the model is not decoder-only")

    @property
    def slow_paths(self) -> dict[str, str]:
        """Request kinds that run through lm-eval's own loops, and why."""
        return {**self._notes, **self._slow}

    def prepare(
        self, groups: Sequence[Sequence[Instance]], batch_size: int | None = None, exact: bool = False
    ) -> list[PreparedRequests]:
        """Tokenise and lay out the requests of documents, once.

        Args:
            groups: the instances of each document, in document order.
            batch_size: rows of a forward pass, None = the scorer's.
            exact: lm-eval's own loops.

        Returns:
            One entry for each kind of request.
        """
        size = batch_size or self._asked_batch_size
        exact = exact or self._exact
        kinds = dict.fromkeys(instance.request_type for group in groups for instance in group)
        return [self._prepare_kind(kind, groups, size, exact) for kind in kinds]

    def _prepare_kind(
        self, kind: RequestKind, groups: Sequence[Sequence[Instance]], size: int | None, exact: bool
    ) -> PreparedRequests:
        requests: list[Instance] = []
        ends: list[int] = []
        for place, group in enumerate(groups, 1):
            mine = [instance for instance in group if instance.request_type == kind]
            requests += [instance for instance in mine for _ in range(instance.repeats or 1)]
            if place % BLOCK_DOCUMENTS == 0 or place == len(groups):
                ends.append(len(requests))
        rows = size or STOCK_ROWS
        if exact or kind == "loglikelihood_rolling" or kind in self._slow:
            return PreparedRequests(kind, requests, rows)
        if kind == "loglikelihood":
            tokens = self._tokenise(requests)
            plan = plan_loglikelihood(tokens, ends, PassSize.of(self.device, size), self.max_length, self.device)
            return PreparedRequests(kind, requests, rows, loglikelihood=plan)
        return PreparedRequests(kind, requests, rows, blocks=self._generation_blocks(requests, size))

    def score(self, prepared: PreparedRequests, seed: int = 0) -> list[Any]:
        """Answers of the live model, in request order.

        Args:
            prepared: what `prepare` gave.
            seed: of the random generator, where a request asks for sampling.

        Raises:
            ScoringFailed: the model's numbers are not finite.
        """
        if prepared.loglikelihood is not None:
            return list(run_loglikelihood(self.model, prepared.loglikelihood))
        if prepared.blocks:
            return self._generate(prepared.blocks, len(prepared.requests))
        return self._stock(prepared, seed)

    def _tokenise(self, requests: Sequence[Instance]) -> list[tuple[list[int], list[int]]]:
        """Context and continuation tokens exactly as lm-eval makes them."""
        self._captured = []
        try:
            TemplateLM.loglikelihood(self, list(requests), disable_tqdm=True)
            return [(list(context), list(continuation)) for _, context, continuation in self._captured]
        finally:
            self._captured = None

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        if self._captured is not None:
            self._captured += requests
            return [(0.0, False)] * len(requests)
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def _generation_blocks(self, requests: Sequence[Instance], size: int | None) -> tuple[GenerationBlock, ...]:
        """Blocks of requests with the same generation arguments, in document order; none when a request needs more."""
        grouped: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            grouped.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)
        blocks: list[GenerationBlock] = []
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        for members in grouped.values():
            arguments = normalize_gen_kwargs(requests[members[0]].args[1], self.max_gen_toks)
            stops = handle_stop_sequences(arguments.pop("until", None), eos=eos)
            new_tokens = arguments.pop("max_gen_toks")
            sampled = arguments.pop("do_sample", False)
            others = sorted(key for key in arguments if key not in ("temperature", "top_p", "top_k"))
            reason = "sampling is asked for" if sampled else f"generation argument {others[0]!r}" if others else None
            if self.max_length <= new_tokens:
                reason = "max_gen_toks leaves no room for the prompt"
            prompts = [] if reason else self._prompts([requests[index] for index in members], new_tokens)
            longest = max(map(len, prompts), default=0) + new_tokens
            reason = reason or why_not_greedy(self.model, self.tokenizer, stops, longest, self._plain_config)
            if reason is not None:
                self._notes["generate_until"] = reason
                logger.info("generation runs through lm-eval's own loop: %s", reason)
                return ()
            count = -(-len(members) // (size or self._generation_rows(longest)))
            bounds = [len(members) * part // count for part in range(count + 1)]
            for start, end in itertools.pairwise(bounds):
                block = plan_block(
                    prompts[start:end], members[start:end], stops, new_tokens, self.tokenizer.pad_token_id,
                    PassSize.of(self.device, size), self.device,
                )  # fmt: skip
                blocks.append(block)
        return tuple(blocks)

    def _prompts(self, requests: Sequence[Instance], new_tokens: int) -> list[list[int]]:
        """Prompt tokens as lm-eval encodes them, cut on the left to leave room for the answer."""
        prompts = []
        for request in requests:
            ids, _ = self.tok_batch_encode([request.args[0]], truncation=self.truncation)
            prompts.append(ids[0].tolist()[-(self.max_length - new_tokens) :])
        return prompts

    def _generation_rows(self, longest: int) -> int:
        """Rows of a block: as many as keep its cache small; the same on every machine."""
        config = self._plain_config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        row = 2 * config.num_hidden_layers * heads * size * longest * self.model.dtype.itemsize
        kind = "cuda" if self.device.type == "cuda" else "cpu"
        return int(max(1, min(GENERATION_ROWS[kind], _CACHE_BYTES[kind] // row)))

    def _generate(self, blocks: Sequence[GenerationBlock], num_requests: int) -> list[str]:
        texts = [""] * num_requests
        for block in blocks:
            answers = generate_block(self.model, self.tokenizer, block)
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

    def check(self, prepared: PreparedRequests) -> str | None:
        """Compare a fast loop with lm-eval's on a few requests; what differs, None when they agree.

        Done once for each kind of request: it is the model's architecture that decides. After a disagreement,
        `prepare` lays such requests out for lm-eval's own loop.
        """
        if prepared.kind in self._checked:
            return None
        self._checked.add(prepared.kind)
        try:
            if prepared.loglikelihood is not None:
                shortest = sorted(prepared.requests, key=lambda request: sum(map(len, request.args)))
                reason = self._check_loglikelihood(shortest[:_CHECKED_REQUESTS])
            elif prepared.blocks:
                reason = self._check_generation(prepared.blocks[0])
            else:
                return None
        except ScoringFailed:
            return None  # the weights are at fault, not the loop; the candidate will say so
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            if isinstance(error, RuntimeError) and "memory" in str(error).lower():
                raise
            reason = f"{type(error).__name__}: {error}"
        if reason is not None:
            self._slow[prepared.kind] = reason
            logger.warning("%s runs through lm-eval's own loop: %s", prepared.kind, reason)
        return reason

    def _check_loglikelihood(self, requests: list[Instance]) -> str | None:
        tokens = self._tokenise(requests)
        size = PassSize.of(self.device, len(tokens))
        plan = plan_loglikelihood(tokens, [len(tokens)], size, self.max_length, self.device)
        ours = run_loglikelihood(self.model, plan)
        theirs = HFLM.loglikelihood(self, requests, disable_tqdm=True)
        pairs = zip(ours, theirs, tokens, strict=True)
        apart = [abs(mine[0] - stock[0]) / len(continuation) for mine, stock, (_, continuation) in pairs]
        # lm-eval's softmax in bfloat16 rounds by up to 0.1 itself; a wrong loop is off by far more.
        exact = self.model.dtype == torch.float32
        off, tolerance = (max(apart), 1e-3) if exact else (sum(apart) / len(apart), 0.15)
        return f"log-probabilities differ by {off:.3g} a token from lm-eval's" if off > tolerance else None

    @torch.no_grad()
    def _check_generation(self, block: GenerationBlock) -> str | None:
        """Each generated token must be the best one, within rounding, without cache, padding or batch."""
        places = block.lengths.argsort()[:_CHECKED_PROMPTS].tolist()
        prompts = {row: chunk.input_ids[line] for chunk in block.chunks for line, row in enumerate(chunk.rows)}
        rows = [prompts[place][-int(block.lengths[place]) :].tolist() for place in places]
        rows[0] = rows[0][len(rows[0]) // 2 :]  # one prompt of another length, so that padding is checked too
        few = plan_block(
            rows, places, block.stops, min(block.max_new_tokens, _CHECKED_TOKENS), self.tokenizer.pad_token_id,
            PassSize.of(self.device, 2), self.device,
        )  # fmt: skip
        tolerance = 1e-2 if self.model.dtype == torch.float32 else 0.5
        for line, tokens in enumerate(generate_block(self.model, self.tokenizer, few)):
            prompt = torch.tensor(rows[line], device=self.device)
            whole = torch.cat([prompt, prompt.new_tensor(tokens)])[None, :-1]
            logits = self.model(input_ids=whole).logits[0, len(prompt) - 1 :].float()
            behind = logits.max(-1).values - logits.gather(1, prompt.new_tensor(tokens)[:, None])[:, 0]
            if float(behind.max()) > tolerance:
                return f"a generated token is {float(behind.max()):.3g} behind the best one of an uncached pass"
        return None

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """lm-eval's entry point, through the prepared loop."""
        return self._at_once("loglikelihood", requests)

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
