"""Fixtures every test folder may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def micro_zoo() -> Iterator[dict[str, Path]]:
    """The micro zoo, built once and kept between test runs; name -> folder. `zoo:` names work while it is in use."""
    from evomerge.zoo.build import build

    cache = os.environ.get("EVOMERGE_CACHE") or str(Path(__file__).parent / ".cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOMERGE_CACHE", cache)
        yield {path.name: path for path in build("micro")}


@pytest.fixture(scope="session")
def counting_expert(micro_zoo: dict[str, Path]) -> Path:
    """The micro zoo's expert that counts, which is not built with its group."""
    from evomerge.zoo.build import build

    return build("micro-count")[-1]


@pytest.fixture(scope="session")
def vision_zoo() -> Iterator[dict[str, Path]]:
    """The vision zoo, likewise."""
    from evomerge.zoo.build import build

    cache = os.environ.get("EVOMERGE_CACHE") or str(Path(__file__).parent / ".cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOMERGE_CACHE", cache)
        yield {path.name: path for path in build("vision")}
