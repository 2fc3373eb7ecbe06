"""How long the model itself ran, whoever called it."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import torch


class ForwardClock:
    """Sums the wall time of every call of a model, also of calls inside ``generate``.

    On a GPU each call is waited for, so that queued work counts where it belongs.

    Attributes:
        seconds: time in forward passes so far.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.seconds = 0.0
        self._model = model
        self._started = 0.0
        self._on_gpu = next(model.parameters()).is_cuda
        self._handles: list[Any] = []

    def __enter__(self) -> ForwardClock:
        self._handles = [
            self._model.register_forward_pre_hook(self._start),
            self._model.register_forward_hook(self._stop),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._started
