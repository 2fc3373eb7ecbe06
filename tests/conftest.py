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
