"""The worker: one live model, one prepared fitness; each candidate is merged in place and scored."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import MergeFailed, UserError
from evomerge.evaluation.failures import WorkerBroken, is_out_of_memory
from evomerge.evaluation.known_answers import KnownAnswers, NotKnown
from evomerge.runtime.executor import Job, WorkerPlan, WorkerReport
from evomerge.runtime.isolation import isolated_evaluation
from evomerge.terms import Evaluation, Failure, FailureKind, Seconds, SplitName

if TYPE_CHECKING:
    from evomerge.engine.live_model import LiveModel
    from evomerge.evaluation.evaluator import Evaluator
    from evomerge.runtime.model_key import ModelKeys
    from evomerge.runtime.vllm_model import VllmModel

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
        began = time.monotonic()
        # Before the files are opened: what is hashed must be what is merged.
        self._keys = _model_keys(plan)
        sys.path.extend(path for path in plan.import_paths if path not in sys.path)
        self._plan, self._index = plan, index
        self._batch_size = plan.batch_size
        with isolated_evaluation(index, plan.threads):
            self._live, self._engine = _build_model(plan)
            try:
                self._evaluator = self._build_evaluator(plan.fitness)
                if self._keys is not None:
                    self._keys.begin(self._live.model, plan.lanes > 0)
            except BaseException:
                self.close()
                raise
        self._weights_are_sound = True
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
        live = self._live
        return WorkerReport(
            worker=self._index,
            device=str(next(live.model.parameters()).device if self._engine is None else live.device),
            dtype=str(live.dtype).removeprefix("torch."),
            model_bytes=live.model_bytes,
            memory_plan=self._live.memory_plan,
            start_seconds=self._start_seconds,
            notes=self._evaluator.notes,
        )

    def close(self) -> None:
        """End what runs beside this process."""
        if self._engine is not None:
            self._engine.close()

    def _try(self, job: Job) -> Evaluation:
        began = time.perf_counter()
        merge_seconds = 0.0
        try:
            known = None if self._keys is None else self._keys.known(job.recipe)
            with isolated_evaluation(job.seed, self._plan.threads):
                recalled = None if known is None else self._recall(job, known)
                if recalled is not None:
                    return recalled
                self._weights_are_sound = False
                merge_seconds = self._live.apply(job.recipe)
                evaluation = self._evaluate(job, known)
            seconds = replace(evaluation.seconds, merge=merge_seconds)
            evaluation = replace(only_finite(evaluation), seconds=seconds, hops=self._live.take_hop_counts())
            self._weights_are_sound = evaluation.failure is None
            if self._keys is not None and known is not None and evaluation.failure is None and self._keys.are_current():
                known.commit()
            return evaluation
        except WorkerBroken:
            raise
        # A fitness function that calls sys.exit must not end the worker.
        except (Exception, SystemExit) as error:
            failure = failure_from(error)
            LOG.debug("%s failed: %s", job.key, failure.message, exc_info=True)
            spent = time.perf_counter() - began - merge_seconds
            return Evaluation(seconds=Seconds(merge=merge_seconds, forward=spent), failure=failure)

    def _evaluate(self, job: Job, known: KnownAnswers | None) -> Evaluation:
        evaluation = self._evaluator.evaluate(job.split, job.seed, job.race, job.documents, known)
        if evaluation.ok and job.split == "held_out" and self._plan.report:
            evaluation = self._with_reported(evaluation, job, known)
        return evaluation

    def _recall(self, job: Job, known: KnownAnswers) -> Evaluation | None:
        """The evaluation, where all of it is known: nothing is merged, no forward pass runs. None where it is not."""
        strictly = known.strictly(may_prepare=self._weights_are_sound)
        try:
            with self._live.out_of_route():
                evaluation = only_finite(self._evaluate(job, strictly))
        except NotKnown:
            return None
        # What fails on known answers has to fail on computed ones, or it says nothing about the candidate.
        return replace(evaluation, is_recalled=True) if evaluation.failure is None else None

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
            engine=self._engine,
        )
        evaluator = build_evaluator(configs, self._plan.documents, settings)
        with self._live.out_of_route():
            evaluator.bind(self._live.model, self._live.tokenizer, self._live.cost)
        return evaluator

    @cached_property
    def _reporter(self) -> Evaluator:
        """Scores what is only reported; built when the first held-out job asks for it."""
        return self._build_evaluator(self._plan.report)

    def _with_reported(self, evaluation: Evaluation, job: Job, known: KnownAnswers | None) -> Evaluation:
        """Adds tables and metrics of what is only reported; the fitness stays as it is."""
        if known is not None and known.only and not known.may_prepare and "_reporter" not in self.__dict__:
            raise NotKnown
        reported = self._reporter.evaluate(job.split, job.seed, None, None, known)
        if reported.failure is not None:
            LOG.warning("%s: not reported: %s", job.key, reported.failure.message)
            return evaluation
        spent, more = evaluation.seconds, reported.seconds
        return replace(
            evaluation,
            document_scores=evaluation.document_scores + reported.document_scores,
            metrics={**reported.metrics, **evaluation.metrics},
            seconds=replace(spent, forward=spent.forward + more.forward, metric=spent.metric + more.metric),
            known_documents=reported.known_documents,
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


def _build_model(plan: WorkerPlan) -> tuple[LiveModel | VllmModel, VllmModel | None]:
    """The model that candidates are written into, and the engine that generates where it is not in this process."""
    if plan.vllm is None:
        from evomerge.engine.live_model import LiveModel

        live = LiveModel(
            plan.base, plan.experts, plan.dtype, plan.device, plan.threads, plan.state_memory_bytes,
            any_depth=plan.lanes > 0, prefix_cache_bytes=plan.prefix_cache_bytes,
        )  # fmt: skip
        return live, None
    from evomerge.runtime.vllm_model import VllmModel, VllmModels

    models = VllmModels(
        plan.base, plan.experts, plan.dtype, plan.device, plan.threads, plan.state_memory_bytes, plan.import_paths
    )
    engine = VllmModel(plan.vllm, models)
    return engine, engine


def _model_keys(plan: WorkerPlan) -> ModelKeys | None:
    """What tells merged models apart, None without a cache."""
    if plan.score_cache is None:
        return None
    from evomerge.runtime.model_key import ModelKeys

    base = () if plan.base is None else (plan.base,)
    return ModelKeys(Path(plan.score_cache), (*base, *(source for _, source in plan.experts)))


def only_finite(evaluation: Evaluation) -> Evaluation:
    """The evaluation, turned into a failure when a fitness value is not a finite number.

    Other metrics that are none are left out, with a warning: a perplexity may overflow where the accuracy is sound.
    """
    if evaluation.stop is not None or evaluation.part is not None:
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
    kind = FailureKind.OUT_OF_MEMORY if is_out_of_memory(error) else FailureKind.EXCEPTION
    return Failure(kind, f"{type(error).__name__}: {text}" if text else type(error).__name__)
