"""Hypervolume that each optimizer for several objectives reaches on known fronts, with few evaluations.

Levels are shares of the whole front's hypervolume, a few hundredths below what was measured; random search of the same
budget lies below each of them.
"""

import runpy
from pathlib import Path
from typing import Any

import pytest

from evomerge.search.front import hypervolume

SCRIPTS = Path(__file__).parents[3] / "scripts"
SETTINGS: dict[str, dict[str, Any]] = {
    "nsga2": {"population_size": 20},
    "nsga3": {"population_size": 20},
    "map_elites": {"quality": 1},
    "gp": {"num_initial_random": 6, "population_size": 1},
}
EVALUATIONS = {"tpe": 70, "gp": 11}  # the others 200
LEVELS = {
    "cma_pareto": {"zdt1": 0.82, "zdt2": 0.70, "zdt3": 0.76, "dtlz2": 0.74},
    "como_catcma": {"zdt1": 0.68, "zdt2": 0.41, "zdt3": 0.60},
    "map_elites": {"zdt1": 0.78, "zdt2": 0.70, "zdt3": 0.61, "dtlz2": 0.58},
    "cycleqd": {"zdt1": 0.76, "zdt2": 0.56, "zdt3": 0.73, "dtlz2": 0.63},
    "nsga2": {"zdt1": 0.75, "zdt3": 0.68, "dtlz2": 0.66},
    "nsga3": {"zdt1": 0.74, "zdt2": 0.58, "dtlz2": 0.60},
    "tpe": {"zdt1": 0.66},
    "gp": {"zdt1": 0.70},
}
CASES = [(name, problem) for name, levels in LEVELS.items() for problem in levels]


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    import sys

    sys.path.insert(0, str(SCRIPTS))
    try:
        return runpy.run_path(str(SCRIPTS / "bench_pareto.py"))
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize(("name", "problem"), CASES)
def test_hypervolume_reaches_its_level_and_beats_random_search(bench: dict[str, Any], name: str, problem: str) -> None:
    found = bench["pareto_problems"](6, far=4.0)[problem]
    evaluations = EVALUATIONS.get(name, 200)
    shares = []
    for one in (name, "random"):
        settings = SETTINGS.get(one, {})
        rows, _ = bench["search"](bench["build"](one, found, 0, evaluations, **settings), found, evaluations)
        shares.append(hypervolume(rows, found.reference) / found.best)
    assert len(rows) == evaluations
    level = LEVELS[name][problem]
    assert shares[1] < level <= shares[0] <= 1.0
