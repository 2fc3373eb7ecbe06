"""Numbers of a merge and a path through it in one genotype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.errors import UserError
from evomerge.recipes.recipe import Hop, Merge, Recipe, Route, Rule, Source, route_through
from evomerge.recipes.recipe_yaml import format_recipe, parse_recipe
from evomerge.recipes.validate import recipe_problems
from evomerge.spaces.joint_space import JointSpace
from evomerge.spaces.space import ModelShape, SpaceModels
from evomerge.spaces.space_yaml import build_space, load_space
from evomerge.terms import GeneKind

EXPERTS = (("math", Source("zoo:math")), ("spanish", Source("zoo:spanish")))
MODELS = SpaceModels(
    Source("zoo:base"), EXPERTS, 4, 7, "bfloat16",
    shapes=tuple((name, ModelShape(4, (10,) * 4, 5)) for name in ("base", "math", "spanish")),
)  # fmt: skip
TIES = {
    "method": "ties",
    "parameters": {"density": {"low": 0.1, "high": 1.0, "init": 0.5}},
    "fixed": {"normalize": False},
}


def space_of(route: dict[str, Any], models: SpaceModels = MODELS) -> JointSpace:
    built = build_space(load_space({"kind": "joint", "parameters": TIES, "route": route}, "f.yaml"), models)
    assert isinstance(built, JointSpace)
    return built


def test_genes_of_the_merge_come_first() -> None:
    space = space_of({"encoding": "sequence", "max_hops": 5, "pool": ["merged", "spanish"]})
    assert [gene.name for gene in space.genes] == [
        "parameters.density/math", "parameters.density/spanish", *(f"route.hops/{n}" for n in range(1, 6)),
    ]  # fmt: skip
    assert [gene.sequence for gene in space.genes] == ["", "", *["hops"] * 5]
    assert list(space.gene_groups) == ["parameters.density/math", "parameters.density/spanish", "route.hops"]
    assert space.gene_groups["route.hops"] == [2, 3, 4, 5, 6]
    assert space.num_lanes == 2
    assert "7 genes" in space.describe()


def test_the_merge_lends_blocks_and_ends() -> None:
    space = space_of({"encoding": "sequence", "max_hops": 5, "pool": ["merged", "spanish"]})
    recipe = space.decode(np.array([0.25, 0.75, 0, 7, 8, 3, 8]))
    route = recipe.model
    assert isinstance(route, Route)
    assert route.hops == (Hop("merged", 0), Hop("spanish", 3), Hop("merged", 3))
    merged = route.node("merged")
    assert isinstance(merged, Merge)
    assert [(rule.expert, rule.value) for rule in merged.rules("density")] == [("math", 0.25), ("spanish", 0.75)]
    assert (recipe.reference, recipe.dtype) == (Source("zoo:base"), "bfloat16")
    assert not recipe_problems(recipe)
    assert parse_recipe(format_recipe(recipe)) == recipe


@pytest.mark.parametrize("pool", [["merged", "spanish"], ["spanish", "merged"], ["math", "merged", "spanish"]])
@pytest.mark.parametrize("encoding", ["sequence", "layer_swap"])
def test_genotypes_and_recipes(encoding: str, pool: list[str]) -> None:
    keys = {"outside": True} if encoding == "layer_swap" else {"max_hops": 3}
    space = space_of({"encoding": encoding, "pool": pool, **keys})
    rng = np.random.default_rng(0)
    unread = 0
    for _ in range(200):
        unit = rng.random(len(space.genes))
        genotype = np.array([gene.low + gene.width * at for gene, at in zip(space.genes, unit)])
        genotype = np.where([gene.kind is not GeneKind.REAL for gene in space.genes], np.round(genotype), genotype)
        recipe = space.decode(genotype)
        assert not recipe_problems(recipe)
        assert "?" not in [source.model for source in recipe.sources]
        encoded = space.encode(recipe)
        assert space.decode(encoded) == recipe
        assert np.array_equal(space.encode(space.decode(encoded)), encoded)
        unread += not np.array_equal(encoded[:2], genotype[:2])
    assert unread < 150  # where nothing of the merge is used, its numbers start anew


def test_the_experts_are_in_the_pool_by_default() -> None:
    space = space_of({"encoding": "sequence"})
    assert space.num_lanes == 3
    first = space.decode(np.array([gene.initial for gene in space.genes])).model
    assert isinstance(first, Route)
    assert [(hop.model, hop.block) for hop in first.hops] == [("merged", n) for n in range(4)]


def test_other_recipes_are_refused() -> None:
    space = space_of({"encoding": "sequence"})
    linear = Merge("linear", EXPERTS, None, (("coefficient", (Rule(0.5),)),))
    with pytest.raises(UserError, match="has no route"):
        space.encode(Recipe(linear))
    with pytest.raises(UserError, match="method is linear, the space has ties"):
        space.encode(Recipe(route_through({"merged": linear}, [Hop("merged", 0)], "merged")))


def test_parts_may_be_presets_and_depths_may_be_told(tmp_path: Path) -> None:
    (tmp_path / "path.yaml").write_text("kind: data_flow\nencoding: slices\ndepths: {merged: 3, math: 3, spanish: 3}\n")
    entries = {"kind": "joint", "parameters": "linear_by_block_group", "route": "./path.yaml"}
    config = load_space(entries, "f.yaml", tmp_path)
    unknown = SpaceModels(None, EXPERTS, None)
    assert build_space(load_space({**entries, "route": "dfs_slices"}), unknown) is None
    assert build_space(config, SpaceModels(None, EXPERTS, 6, shapes=(("math", ModelShape(3)),))) is not None
    dumped = config.model_dump(mode="json", exclude_defaults=True, by_alias=True)
    assert load_space(dumped, "again").model_dump() == config.model_dump()
