"""The worker: one live model, one prepared fitness; each candidate is merged in place and scored."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evomerge.errors import MergeFailed, UserError
from evomerge.runtime.executor import Job, WorkerPlan, WorkerReport
from evomerge.runtime.isolation import isolated_evaluation
from evomerge.terms import Evaluation, Failure, FailureKind, Seconds, SplitName

if TYPE_CHECKING:
    from evomerge.evaluation.evaluator import Evaluator

LOG = logging.getLogger(__name__)

# Rows to begin with when memory runs out at the tasks' own batch sizes.
FIRST_SMALLER_BATCH = 16
MESSAGE_LENGTH = 400
# Numbers that are published come out of lm-eval's own loops.
REPORTED_SPLITS: tuple[SplitName, ...] = ("held_out",)


class Worker:
    """Merges and scores candidates on one live model.

    Args:
        plan: what to build.
        index: number of the worker, for logs.

    Raises:
        UserError: models or tasks cannot be used.
    """

    def __init__(self, plan: WorkerPlan, index: int = 0) -> None:
        # Tokenizers warn and may deadlock when their thread pool meets a forked process.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from evomerge.engine.live_model import LiveModel

        began = time.monotonic()
        sys.path.extend(path for path in plan.import_paths if path not in sys.path)
        self._plan, self._index = plan, index
        self._batch_size = plan.batch_size
        with isolated_evaluation(index, plan.threads):
            self._live = LiveModel(
                plan.base, plan.experts, plan.dtype, plan.device, plan.threads, plan.state_memory_bytes,
                any_depth=plan.lanes > 0, prefix_cache_bytes=plan.prefix_cache_bytes,
            )  # fmt: skip
            self._evaluator = self._build_evaluator(plan.fitness)
        self._start_seconds = time.monotonic() - began

    def run(self, job: Job) -> Evaluation:
        """Merge and score one candidate; whatever goes wrong is in ``Evaluation.failure``, with a traceback logged.

        When memory runs out it tries again with half the batch, and keeps that size: the next candidates need as much.
        """
        while True:
            evaluation = self._try(job)
            if evaluation.failure is None or evaluation.failure.kind is not FailureKind.OUT_OF_MEMORY:
                return evaluation
            if self._batch_size == 1:
                return evaluation
            smaller = self._batch_size // 2 if self._batch_size else FIRST_SMALLER_BATCH
            LOG.warning("%s ran out of memory; going on with batches of %d", job.key, smaller)
            if not self._use_batch_size(smaller):
                return evaluation

    def report(self) -> WorkerReport:
        """Device, dtype, sizes and the memory plan, as built."""
        parameters = list(self._live.model.parameters())
        return WorkerReport(
            worker=self._index,
            device=str(parameters[0].device),
            dtype=str(parameters[0].dtype).removeprefix("torch."),
            model_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
            memory_plan=self._live.memory_plan,
            start_seconds=self._start_seconds,
            notes=self._evaluator.notes,
        )

    def _try(self, job: Job) -> Evaluation:
        began = time.perf_counter()
        merge_seconds = 0.0
        try:
            with isolated_evaluation(job.seed, self._plan.threads):
                merge_seconds = self._live.apply(job.recipe)
                evaluation = self._evaluator.evaluate(job.split, job.seed, job.race)
                if evaluation.ok and job.split == "held_out" and self._plan.report:
                    evaluation = self._with_reported(evaluation, job)
            seconds = replace(evaluation.seconds, merge=merge_seconds)
            return replace(only_finite(evaluation), seconds=seconds, hops=self._live.take_hop_counts())
        # A fitness function that calls sys.exit must not end the worker.
        except (Exception, SystemExit) as error:
            failure = failure_from(error)
            LOG.debug("%s failed: %s", job.key, failure.message, exc_info=True)
            spent = time.perf_counter() - began - merge_seconds
            return Evaluation(seconds=Seconds(merge=merge_seconds, forward=spent), failure=failure)

    def _build_evaluator(self, configs: tuple[dict[str, Any], ...]) -> Evaluator:
        from evomerge.evaluation.evaluator import EvaluatorSettings, build_evaluator

        settings = EvaluatorSettings(
            batch_size=self._batch_size,
            exact=self._plan.scorer == "exact",
            exact_splits=REPORTED_SPLITS,
            pass_tokens=self._plan.pass_tokens,
            import_paths=self._plan.import_paths,
            # What is only reported has no search documents to race on.
            rungs=self._plan.rungs if configs is self._plan.fitness else None,
        )
        evaluator = build_evaluator(configs, self._plan.documents, settings)
        with self._live.out_of_route():
            evaluator.bind(self._live.model, self._live.tokenizer, self._live.cost)
        return evaluator

    @cached_property
    def _reporter(self) -> Evaluator:
        """Scores what is only reported; built when the first held-out job asks for it."""
        return self._build_evaluator(self._plan.report)

    def _with_reported(self, evaluation: Evaluation, job: Job) -> Evaluation:
        """Adds tables and metrics of what is only reported; the fitness stays as it is."""
        reported = self._reporter.evaluate(job.split, job.seed)
        if reported.failure is not None:
            LOG.warning("%s: not reported: %s", job.key, reported.failure.message)
            return evaluation
        spent, more = evaluation.seconds, reported.seconds
        return replace(
            evaluation,
            document_scores=evaluation.document_scores + reported.document_scores,
            metrics={**reported.metrics, **evaluation.metrics},
            seconds=replace(spent, forward=spent.forward + more.forward, metric=spent.metric + more.metric),
        )

    def _use_batch_size(self, batch_size: int) -> bool:
        import torch

        self._live.drop_prefixes()
        # The exception that ran out is gone by now, and with it the frames that held its tensors.
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
        try:
            with isolated_evaluation(self._index, self._plan.threads):
                self._evaluator.set_batch_size(batch_size)
                if "_reporter" in self.__dict__:
                    self._reporter.set_batch_size(batch_size)
        except Exception:
            LOG.warning("cannot change to batches of %d", batch_size, exc_info=True)
            return False
        self._batch_size = batch_size
        return True


def only_finite(evaluation: Evaluation) -> Evaluation:
    """The evaluation, turned into a failure when a fitness value is not a finite number.

    Other metrics that are none are left out, with a warning: a perplexity may overflow where the accuracy is sound.
    """
    if evaluation.stop is not None:
        return evaluation
    if evaluation.ok and not (evaluation.fitness and all(math.isfinite(value) for value in evaluation.fitness)):
        failure = Failure(FailureKind.NON_FINITE, f"fitness {evaluation.fitness} is not finite")
        return Evaluation(metrics={}, seconds=evaluation.seconds, failure=failure)
    broken = [name for name, value in evaluation.metrics.items() if not math.isfinite(value)]
    if broken:
        LOG.warning("left out metrics that are not finite: %s", ", ".join(broken))
        kept = {name: value for name, value in evaluation.metrics.items() if name not in broken}
        return replace(evaluation, metrics=kept)
    return evaluation


def failure_from(error: BaseException) -> Failure:
    """What to record about an exception out of merging or scoring."""
    text = " ".join(str(error).split())[:MESSAGE_LENGTH]
    if isinstance(error, MergeFailed):
        return Failure(FailureKind.NON_FINITE, text)
    if isinstance(error, UserError):
        return Failure(FailureKind.EXCEPTION, text)
    from evomerge.evaluation.failures import is_out_of_memory

    kind = FailureKind.OUT_OF_MEMORY if is_out_of_memory(error) else FailureKind.EXCEPTION
    return Failure(kind, f"{type(error).__name__}: {text}" if text else type(error).__name__)
