"""Linear algebra on one thread: the bits of an optimizer's state must not depend on how many cores a machine has."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from threadpoolctl import ThreadpoolController


class SingleThread:
    """Limits thread pools while an optimizer works, and hides its library's warnings of infinities and novelties.

    Build it after the libraries it has to limit are imported.

    Args:
        pools: ``blas`` or, for optimizers that use torch, ``all`` (adds OpenMP).
    """

    def __init__(self, pools: Literal["blas", "all"] = "blas") -> None:
        self._controller = ThreadpoolController()
        self._user_api = "blas" if pools == "blas" else None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """One thread and no warnings inside the ``with`` block."""
        limit = self._controller.limit(limits=1, user_api=self._user_api)
        with limit, np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            yield
