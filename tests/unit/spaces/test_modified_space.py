"""Methods around the merge of a search space: their genes, their recipes, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.errors import InvalidInput, UserError
from evomerge.recipes.recipe import Merge, Source
from evomerge.recipes.recipe_yaml import format_recipe, parse_recipe
from evomerge.recipes.validate import recipe_problems
from evomerge.spaces.space import SearchSpace, SpaceModels
from evomerge.spaces.space_yaml import build_space, load_space

MODELS = SpaceModels(Source("b"), (("math", Source("m")), ("spanish", Source("s"))), 8, 5, "bfloat16")
CONFIG: dict[str, Any] = {
    "kind": "parameter_space",
    "method": "ties",
    "groups": {"blocks": 2},
    "parameters": {"density": {"low": 0.1, "high": 0.9, "share": ["experts"]}},
    "before": [
        {"method": "dare_linear", "parameters": {"density": {"low": 0.2, "high": 1.0, "share": ["blocks"]}}},
        {"method": "star", "fixed": {"eta": 60.0}},
    ],
    "after": [{"method": "task_arithmetic", "parameters": {"coefficient": {"low": 0.0, "high": 2.0, "init": 0.5}}}],
}


def space(models: SpaceModels = MODELS, **changes: Any) -> SearchSpace:
    built = build_space(load_space({**CONFIG, **changes}), models)
    assert built is not None
    return built


def test_genes_of_the_merge_come_first() -> None:
    built = space()
    assert [gene.name for gene in built.genes] == [
        "density/blocks0-3", "density/blocks4-7", "before[0].dare_linear.density/expert",
        "after[0].task_arithmetic.coefficient/merged/blocks0-3",
        "after[0].task_arithmetic.coefficient/merged/blocks4-7",
    ]  # fmt: skip
    covered = sorted(index for indices in built.gene_groups.values() for index in indices)
    assert covered == list(range(len(built.genes)))
    assert [gene.initial for gene in built.genes][3:] == [0.5, 0.5]
    assert "star" in built.describe()


def test_recipes_hold_the_methods_around_the_merge() -> None:
    recipe = space().decode(np.array([0.3, 0.5, 0.4, 1.0, 0.8]))
    assert recipe_problems(recipe) == []
    outer = recipe.model
    assert isinstance(outer, Merge)
    assert (outer.method, [name for name, _ in outer.experts]) == ("task_arithmetic", ["merged"])
    ties = outer.experts[0][1]
    assert isinstance(ties, Merge)
    for name, expert in ties.experts:
        assert isinstance(expert, Merge)
        assert (expert.method, expert.experts[0][0]) == ("star", name)
        inner = expert.experts[0][1]
        assert isinstance(inner, Merge)
        assert (inner.method, inner.seed, inner.experts[0][0]) == ("dare_linear", 5, name)
        assert [rule.value for rule in inner.rules("density")] == [0.4]


def test_decode_and_encode_are_inverse() -> None:
    built = space()
    low, high = np.array([[gene.low, gene.high] for gene in built.genes]).T
    for row in np.random.default_rng(0).random((50, len(low))):
        genotype = low + row * (high - low)
        recipe = built.decode(genotype)
        assert np.array_equal(built.encode(recipe), genotype)
        assert built.encode(parse_recipe(format_recipe(recipe))).tolist() == genotype.tolist()


def test_another_recipe_does_not_belong_here(tmp_path: Path) -> None:
    built = space()
    recipe = built.decode(np.array([gene.initial for gene in built.genes]))
    assert isinstance(recipe.model, Merge)
    with pytest.raises(UserError, match="task_arithmetic"):
        built.encode(type(recipe)(recipe.model.experts[0][1]))
    with pytest.raises(UserError, match="no dare_linear before"):
        space(before=CONFIG["before"][:1]).encode(recipe)
    start = np.array([0.2, 0.7, 0.6, 1.5, 0.1])
    (tmp_path / "start.yaml").write_text(format_recipe(built.decode(start)))
    started = space(init_from=str(tmp_path / "start.yaml"))
    assert [gene.initial for gene in started.genes] == start.tolist()


def test_only_what_is_around_may_be_searched() -> None:
    built = space(parameters={}, fixed={"density": 0.3})
    assert len(built.genes) == 3
    without = {"parameters": {}, "fixed": {"density": 0.3}, "before": [], "after": []}
    with pytest.raises(InvalidInput, match="nothing is searched"):
        space(**without)


def test_a_method_of_many_experts_has_them_behind_the_merged_model() -> None:
    after = [{"method": "model_stock", "parameters": {"t_scale": {"low": 0.5, "high": 1.5}}}]
    merge = space(after=after, before=[]).decode(np.array([0.3, 0.5, 1.0, 1.2])).model
    assert isinstance(merge, Merge)
    assert [name for name, _ in merge.experts] == ["merged", "math", "spanish"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"after": [{"method": "linez"}]}, "after[0].method: no merge method is called 'linez'"),
        ({"after": [{"method": "star", "parameters": {"etaa": 3}}]}, "after[0].parameters.etaa: star has no such"),
        ({"before": [{"method": "model_stock"}]}, "before[0].method: model_stock needs at least 2 experts"),
        ({"before": [{"method": "star", "blocks": 2}]}, "before[0].blocks"),
        ({"before": [{"method": "star", "parameters": {"eta": {"low": 9, "high": 5}}}]}, "low must be below high"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        space(**changes)
    assert message in str(caught.value)


def test_methods_around_need_a_base() -> None:
    models = SpaceModels(None, MODELS.experts, 8)
    with pytest.raises(InvalidInput, match=r"models\.base"):
        space(models, method="linear", parameters={"coefficient": {"init": "1/n"}})
