"""What runs candidates: the executor protocol, and the plain data that crosses its border."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from evomerge.errors import EvomergeError
from evomerge.evaluation.racing import Race
from evomerge.evaluation.rungs import RungSettings
from evomerge.recipes.recipe import Recipe, Source
from evomerge.runtime.vllm_settings import VllmSettings
from evomerge.terms import DocumentChoice, Evaluation, SplitName


@dataclass(frozen=True)
class WorkerPlan:
    """Everything a worker needs to build itself, picklable and small (no tensors).

    Attributes:
        base: the base model, which also lends architecture and tokenizer; None = the first expert does.
        experts: (name, source) in the experiment's order.
        fitness: plain dicts of the resolved fitness configs (see evaluation).
        documents: the resolved document plan as plain JSON data (see evaluation).
        dtype: ``auto``, ``bfloat16``, ``float16`` or ``float32``: dtype of the live model.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: torch threads of this worker on CPU.
        batch_size: documents of one forward block, None = each task's default.
        state_memory_bytes: cap on prepared merge state, None = no cap.
        import_paths: folders put on ``sys.path`` for ``python:`` fitness functions.
        report: plain dicts of fitness configs that are only scored, beside the others, on held-out documents.
        lanes: sets of blocks that routes may need beside the live model's own; 0 = no candidate is a route, and all
            models must be equally deep.
        prefix_cache_bytes: cap on what routes keep of hops that the next candidate may share, None = the engine's own.
        scorer: ``fast``, or ``exact``: lm-eval's own loops also for what is not reported.
        pass_tokens: most tokens of one forward pass, None = what suits the device.
        rungs: how the search documents of a racing run are cut, None = not at all.
        vllm: the vLLM that generates in place of a live model, None = transformers does.
        score_cache: folder of the evaluation cache, None = it is not used.
    """

    base: Source | None
    experts: tuple[tuple[str, Source], ...]
    fitness: tuple[dict[str, Any], ...]
    documents: dict[str, Any]
    dtype: str = "auto"
    device: str = "auto"
    threads: int = 1
    batch_size: int | None = None
    state_memory_bytes: int | None = None
    import_paths: tuple[str, ...] = ()
    report: tuple[dict[str, Any], ...] = ()
    lanes: int = 0
    prefix_cache_bytes: int | None = None
    scorer: Literal["fast", "exact"] = "fast"
    pass_tokens: int | None = None
    rungs: RungSettings | None = None
    vllm: VllmSettings | None = None
    score_cache: str | None = None


@dataclass(frozen=True)
class Job:
    """One candidate to merge and score on one split.

    ``key`` is unique in the run, for example ``c17`` (candidate), ``baseline:uniform_soup:held_out``. ``race`` is what
    it has to keep up with on the search documents; None = all of them are scored. ``documents`` are those to score of
    each objective, for an evaluation that is only a `Part`; None = all.
    """

    key: str
    recipe: Recipe
    split: SplitName = "search"
    seed: int = 0
    race: Race | None = None
    documents: DocumentChoice | None = None


@dataclass(frozen=True)
class Outcome:
    """A finished job. ``started``/``finished`` are Unix times; ``attempts`` counts from 1."""

    job: Job
    evaluation: Evaluation
    worker: int
    attempts: int
    started: float
    finished: float


@dataclass(frozen=True)
class WorkerReport:
    """What a worker says of itself after start-up, for logs and the manifest."""

    worker: int
    device: str
    dtype: str
    model_bytes: int
    memory_plan: str
    start_seconds: float
    notes: tuple[str, ...] = field(default=())


class CandidateWorker(Protocol):
    """Merges and scores candidates, one at a time. It runs in a process of its own, or in the driver's (inline)."""

    def run(self, job: Job) -> Evaluation:
        """Merge and score one candidate; whatever goes wrong with the candidate is in ``Evaluation.failure``.

        Raises:
            WorkerBroken: the worker itself is of no use any more; the executor replaces it.
        """
        ...

    def report(self) -> WorkerReport:
        """What the worker says of itself once it is built."""
        ...


class WorkerFactory(Protocol):
    """Builds the worker of one slot; picklable, called in the worker's own process.

    Raises:
        UserError: the models or tasks cannot be used; the executor hands it on to the caller of ``wait``.
    """

    def __call__(self, index: int) -> CandidateWorker:
        """The worker of slot ``index``."""
        ...


class WorkersLost(EvomergeError):
    """No worker could be kept alive: each one died or failed while it started; the message has the last cause."""


class Executor(Protocol):
    """Runs jobs on workers. One thread talks to an executor; results come back in any order.

    A job is never lost: it ends in exactly one Outcome, with ``evaluation.failure`` set when every attempt failed.
    After an exception out of ``wait``, and at the end, the caller calls ``close``.
    """

    @property
    def num_workers(self) -> int:
        """Jobs that can run at once."""
        ...

    @property
    def num_pending(self) -> int:
        """Jobs submitted whose outcome has not been handed out."""
        ...

    @property
    def reports(self) -> tuple[WorkerReport, ...]:
        """One report for each worker that has started."""
        ...

    def submit(self, job: Job) -> None:
        """Queue a job; returns at once (``inline`` runs it in the next ``wait``)."""
        ...

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Outcomes that have arrived, after at most the timeout; empty when none has.

        Raises:
            UserError: a worker cannot start because of what the user gave.
            WorkersLost: no worker can be started or kept.
        """
        ...

    def close(self) -> None:
        """Stop workers and free everything, within seconds, also in the middle of jobs. Pending jobs are dropped."""
        ...
