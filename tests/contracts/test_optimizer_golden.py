"""Proposals under fixed tells stay what they were; scripts/refresh_golden_optimizers.py changes them on purpose."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from evomerge.search.catalogue import SPECS

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "optimizers.json").read_text())


def test_every_optimizer_has_golden_proposals() -> None:
    assert sorted(GOLDEN) == sorted(SPECS), "run scripts/refresh_golden_optimizers.py"


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_proposals_are_the_golden_ones(name: str) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "refresh_golden_optimizers.py"))
    found, expected = script["proposals"](name), GOLDEN[name]
    lengths = [[len(genotype) for genotype in generation] for generation in found]
    assert lengths == [[len(genotype) for genotype in generation] for generation in expected]
    found, expected = (np.concatenate([np.concatenate(one) for one in all_]) for all_ in (found, expected))
    # Random draws are exact everywhere; linear algebra rounds differently between processors.
    tolerance = 0.0 if name in ("random", "sobol", "gp") else 1e-9
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
