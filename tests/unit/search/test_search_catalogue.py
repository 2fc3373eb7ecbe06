"""The list of optimizers: specs are consistent, and every misuse is named with its key before anything runs."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evomerge.errors import InvalidInput, UserError
from evomerge.search.base import Optimizer, Problem
from evomerge.search.catalogue import SPECS, build_optimizer, get_spec, validate_optimizer
from evomerge.search.population import cma_population_size, nsga_population_size, num_divisions
from evomerge.search.seed_gram import CellGram
from evomerge.terms import Gene, GeneKind

REAL = tuple(Gene(f"g{i}") for i in range(6))
MIXED = (*REAL, Gene("method", GeneKind.CATEGORY, choices=("a", "b")))


def problem(genes: tuple[Gene, ...] = REAL, num_objectives: int = 1, evaluations: int | None = 100) -> Problem:
    return Problem(genes, num_objectives, seed=0, evaluations=evaluations)


def complaints(name: str, settings: dict[str, Any], **of: Any) -> list[tuple[str, str]]:
    return [tuple(found) for found in validate_optimizer(name, settings, problem(**of))]


def test_the_promised_optimizers_exist() -> None:
    assert set(SPECS) >= {
        "cma_es", "sep_cma", "catcma", "xnes", "random", "sobol", "tpe", "gp", "nsga2", "nsga3"
    }  # fmt: skip


@pytest.mark.parametrize("name", list(SPECS))
def test_every_spec_is_complete_and_its_defaults_build(name: str) -> None:
    spec = get_spec(name)
    assert spec.name == name
    assert spec.title
    assert spec.paper
    assert all(setting.description for setting in spec.settings)
    defaults = {setting.name: setting.default for setting in spec.settings}
    suitable = problem(num_objectives=spec.min_objectives)
    if spec.merges_seeds:
        suitable = replace(suitable, genes=(), seeds=CellGram.of_vectors(np.eye(3, 30), cell=16))
    assert list(validate_optimizer(name, defaults, suitable)) == []
    assert isinstance(build_optimizer(name, suitable), Optimizer)


def test_published_default_of_cma_es() -> None:
    defaults = {setting.name: setting.default for setting in get_spec("cma_es").settings}
    assert defaults["sigma"] == 1 / 6
    assert defaults["population_size"] == "auto"
    assert [cma_population_size(n) for n in (1, 6, 64, 128, 192, 4288)] == [4, 9, 16, 18, 19, 29]


def test_unknown_optimizer_gets_a_suggestion() -> None:
    assert complaints("cma-es", {}) == [("optimizer.name", "there is no optimizer 'cma-es'. Did you mean 'cma_es'?")]
    with pytest.raises(UserError, match="Did you mean 'nsga2'"):
        get_spec("nsga-2")


def test_all_problems_come_at_once() -> None:
    found = complaints(
        "xnes",
        {"sgima": 0.2, "population_size": 4.5, "restarts": "yes", "sigma": 7},
        genes=MIXED,
        num_objectives=2,
    )
    assert [key for key, _ in found] == [
        "optimizer.sgima",
        "optimizer.population_size",
        "optimizer.restarts",
        "optimizer.sigma",
        "optimizer.name",
        "optimizer.name",
    ]
    text = "\n".join(message for _, message in found)
    assert "xnes has no setting 'sgima'. Did you mean 'sigma'?" in text
    assert "expected a whole number of at least 4 or auto, got 4.5" in text
    assert "expected true or false, got 'yes'" in text
    assert "expected a number from 1e-06 to 1, got 7" in text
    assert "handles only real genes, but 1 of 7 genes are category (first: 'method')" in text
    able = "Use catcma, random, sobol, tpe, gp, nsga2, nsga3, ga, como_catcma, map_elites, cycleqd."
    assert able in text
    assert "handles one objective, got 2" in text


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cma_es", {"sigma": True}),
        ("cma_es", {"sigma": "0.2"}),
        ("cma_es", {"sigma": float("nan")}),
        ("cma_es", {"sigma": 0.0}),
        ("cma_es", {"sigma": "auto"}),
        ("cma_es", {"population_size": 3}),
        ("cma_es", {"population_size": True}),
        ("cma_es", {"population_size": None}),
        ("cma_es", {"lr_adapt": 1}),
        ("cma_es", {"lr_adapt": [True]}),
        ("tpe", {"num_initial_random": "auto"}),
        ("nsga2", {"crossover_probability": 1.5}),
    ],
)
def test_wrong_types_and_ranges(name: str, settings: dict[str, Any]) -> None:
    found = complaints(name, settings)
    assert [key for key, _ in found] == [f"optimizer.{key}" for key in settings]
    assert "expected" in found[0][1]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cma_es", {"sigma": 1, "lr_adapt": False, "population_size": 16}),
        ("cma_es", {"lr_adapt": "auto", "population_size": "auto"}),
        ("nsga2", {"crossover_probability": 1}),
    ],
)
def test_right_types_and_ranges(name: str, settings: dict[str, Any]) -> None:
    assert complaints(name, settings) == []


def test_too_many_genes() -> None:
    many = tuple(Gene(f"g{i}") for i in range(501))
    [(key, message)] = complaints("cma_es", {}, genes=many)
    assert (key, message) == (
        "optimizer.name",
        "cma_es handles up to 500 genes, got 501. Use sep_cma, or search fewer genes.",
    )
    assert complaints("sep_cma", {}, genes=many) == []
    assert complaints("cma_es", {}, genes=many[:500]) == []
    assert "Use nsga2" in complaints("catcma", {}, genes=(*many, MIXED[-1]))[0][1]


def test_too_few_genes() -> None:
    assert "needs at least 2 genes, got 1. Use cma_es." in complaints("sep_cma", {}, genes=REAL[:1])[0][1]
    assert complaints("cma_es", {}, genes=REAL[:1]) == []


@pytest.mark.parametrize("genes", [(), (Gene("still", low=1.0, high=1.0),)])
def test_nothing_to_search(genes: tuple[Gene, ...]) -> None:
    assert ("search_space", "has no gene that can change, so there is nothing to search") in complaints(
        "catcma", {}, genes=genes
    )


def test_budget_below_one_generation() -> None:
    [(key, message)] = complaints("cma_es", {}, evaluations=8)
    assert key == "budget.evaluations"
    assert message.startswith("8 evaluations are fewer than one generation of cma_es (9 candidates).")
    assert complaints("cma_es", {}, evaluations=9) == []
    assert complaints("cma_es", {"population_size": 12}, evaluations=11)
    assert complaints("nsga2", {}, evaluations=7)
    assert complaints("random", {}, evaluations=1) == []
    assert complaints("cma_es", {}, evaluations=None) == []


def test_build_refuses_what_validation_refuses() -> None:
    with pytest.raises(InvalidInput, match=r"optimizer.sigma: expected a number"):
        build_optimizer("cma_es", problem(), {"sigma": "wide"})


def test_populations_of_nsga() -> None:
    assert [nsga_population_size(n) for n in (20, 200, 1000, None)] == [8, 20, 50, 50]
    # two objectives: divisions + 1 directions; three: (p + 1)(p + 2) / 2
    assert num_divisions(2, 20) == 19
    assert num_divisions(3, 20) == 4
    assert num_divisions(3, 91) == 12
    assert num_divisions(1, 20) == 100


def test_no_optimizer_library_is_loaded_to_validate() -> None:
    script = (
        "import sys; from evomerge.search.catalogue import *; from evomerge.terms import Gene\n"
        "from evomerge.search.base import Problem\n"
        "validate_optimizer('cma_es', {}, Problem((Gene('g'),), 1, 0))\n"
        "print([m for m in ('cmaes', 'optuna', 'scipy', 'moocore', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
