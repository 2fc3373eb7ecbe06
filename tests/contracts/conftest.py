"""One Ray for all contract tests of the session."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """A Ray of our own with four CPU slots and two GPUs that are not there."""
    from evomerge.runtime.early_ray import quieten_ray

    quieten_ray()
    from evomerge.runtime.ray_executor import RaySession

    session = RaySession(num_cpus=4, num_gpus=2)
    yield session
    session.close()
