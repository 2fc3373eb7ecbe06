"""Why a candidate could not be scored, on its way from a metric to an Evaluation."""

from __future__ import annotations

from evomerge.errors import EvomergeError
from evomerge.terms import Failure, FailureKind


class ScoringFailed(EvomergeError):
    """Scoring one candidate failed; the run goes on."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class WorkerBroken(EvomergeError):
    """What a worker relies on is lost or in doubt, whatever the candidate; executors replace the worker and try again.

    Attributes:
        kind: how the job failed, should it not be tried again.
    """

    def __init__(self, kind: FailureKind, message: str) -> None:
        self.kind = kind
        super().__init__(message)


def failure_of(error: Exception, doing: str) -> Failure:
    """What to record about an exception.

    Args:
        error: what was raised.
        doing: what was being done, for example ``fitness gsm8k, search``.
    """
    if isinstance(error, ScoringFailed):
        return Failure(error.kind, f"{doing}: {error}")
    kind = FailureKind.OUT_OF_MEMORY if is_out_of_memory(error) else FailureKind.EXCEPTION
    text = " ".join(str(error).split())[:500]
    return Failure(kind, f"{doing}: {type(error).__name__}: {text}" if text else f"{doing}: {type(error).__name__}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch might help: memory of the GPU or of the machine ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
        return "memory" in str(error).lower() or isinstance(error, MemoryError)
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
