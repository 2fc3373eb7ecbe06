"""Every shipped search space keeps the contract of spaces/space.py, over small synthetic sets of models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from evomerge.errors import InvalidInput, UserError
from evomerge.recipes.mergekit_writer import llama_tensors
from evomerge.recipes.recipe import Merge, Route, Source
from evomerge.recipes.recipe_yaml import format_recipe, parse_recipe
from evomerge.recipes.resolve import resolve_values
from evomerge.recipes.validate import recipe_problems
from evomerge.spaces.space import ModelShape, SearchSpace, SpaceModels
from evomerge.spaces.space_yaml import build_space, load_space, space_presets
from evomerge.terms import Array, GeneKind

NAMES = ("math", "spanish", "capitals")
SETUPS = [(experts, blocks) for experts in (1, 2, 3) for blocks in (4, 6, 30)]
ROUTE_SETUPS = [(1, 4), (2, 1), (2, 4), (3, 7), (2, 5)]  # the last one is looked at most closely

PARAMETER_SPACES = [name for name in space_presets() if load_space(name).kind == "parameter_space"]
ROUTE_SPACES = [name for name in space_presets() if name not in PARAMETER_SPACES]
# Their encode refuses routes with scales other than 1, see the contract.
NETWORK_SCALES = ["dfs_indicator_network"]


def models(num_experts: int, num_blocks: int | None, seed: int = 7) -> SpaceModels:
    experts = tuple((name, Source(f"zoo:{name}")) for name in NAMES[:num_experts])
    shape = ModelShape(num_blocks or 1, (1000,) * (num_blocks or 1), 500)
    shapes = tuple((name, shape) for name in ("base", *NAMES[:num_experts]))
    return SpaceModels(Source("zoo:base"), experts, num_blocks, seed, "bfloat16", (), shapes)


def spaces(name: str) -> Iterator[tuple[SearchSpace, int]]:
    for num_experts, num_blocks in SETUPS if name in PARAMETER_SPACES else ROUTE_SETUPS:
        try:
            space = build_space(load_space(name), models(num_experts, num_blocks))
        except InvalidInput as error:
            if not any(
                word in str(error)
                for word in ("experts", "groups of blocks", "single expert", "needs a donor", "2 blocks")
            ):
                raise
            continue
        assert space is not None
        yield space, num_blocks


def random_genotypes(space: SearchSpace, count: int) -> Array:
    rng = np.random.default_rng(1)
    low = np.array([gene.low for gene in space.genes])
    high = np.array([gene.high for gene in space.genes])
    values = low + (high - low) * rng.random((count, len(low)))
    whole = np.array([gene.kind is not GeneKind.REAL for gene in space.genes])
    return np.where(whole, np.round(values), values)


def corners(space: SearchSpace) -> Array:
    low = np.array([gene.low for gene in space.genes])
    high = np.array([gene.high for gene in space.genes])
    if len(low) <= 6:
        bits = (np.arange(2 ** len(low))[:, None] >> np.arange(len(low))) & 1
    else:
        one = np.eye(len(low), dtype=int)
        bits = np.concatenate([one[:1] * 0, one[:1] * 0 + 1, one, 1 - one])
    return np.where(bits == 1, high, low)


def test_there_are_presets() -> None:
    assert len(PARAMETER_SPACES) >= 11
    assert len(ROUTE_SPACES) >= 8


@pytest.mark.parametrize("name", space_presets())
def test_every_genotype_decodes_to_a_valid_recipe_and_back(name: str) -> None:
    built = list(spaces(name))
    assert built, "no set of models suits the preset"
    for index, (space, _) in enumerate(built):
        count = 1000 if index == len(built) - 1 else 10
        for genotype in (*corners(space)[: 200 if count == 1000 else 16], *random_genotypes(space, count)):
            recipe = space.decode(genotype)
            if name in NETWORK_SCALES and isinstance(recipe.model, Route) and recipe.model.is_scaled:
                with pytest.raises(UserError, match="cannot be read back"):
                    space.encode(recipe)
                continue
            encoded = space.encode(recipe)
            if not np.array_equal(encoded, genotype):  # equal genotypes decode to equal recipes
                again = space.decode(encoded)
                assert again == recipe
                assert np.array_equal(space.encode(again), encoded)
    for genotype in random_genotypes(space, 20):
        recipe = space.decode(genotype)
        assert not recipe_problems(recipe)
        assert space.decode(genotype.copy()).recipe_id == recipe.recipe_id
        if name in PARAMETER_SPACES:  # many genotypes may tell one route
            np.testing.assert_allclose(space.encode(recipe), genotype, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", PARAMETER_SPACES)
def test_every_tensor_gets_finite_values_within_the_bounds(name: str) -> None:
    for space, num_blocks in spaces(name):
        for genotype in (*corners(space)[:2], *random_genotypes(space, 2)):
            merge = space.decode(genotype).model
            assert isinstance(merge, Merge)
            for tensor, block, component in llama_tensors(num_blocks):
                values = resolve_values(merge, tensor, block, component, num_blocks)
                for value in values.values():
                    for number in value if isinstance(value, tuple) else (value,):
                        assert isinstance(number, str) or math.isfinite(number)


@pytest.mark.parametrize("name", space_presets())
def test_genes_are_well_formed(name: str) -> None:
    for space, _ in spaces(name):
        names = [gene.name for gene in space.genes]
        assert len(set(names)) == len(names) > 0
        for gene in space.genes:
            assert gene.low <= gene.initial <= gene.high
            assert gene.low < gene.high
        assert (space.num_lanes > 0) == (name in ROUTE_SPACES)
        grouped = [index for members in space.gene_groups.values() for index in members]
        assert sorted(grouped) == list(range(len(names)))
        assert str(len(names)) in space.describe()


@pytest.mark.parametrize("name", PARAMETER_SPACES)
def test_different_genotypes_give_different_recipes(name: str) -> None:
    for space, num_blocks in spaces(name):
        if num_blocks == 30 and len(space.genes) > 60:
            continue  # the same with fewer blocks takes a fifth of the time
        recipes = [space.decode(genotype).recipe_id for genotype in random_genotypes(space, 10)]
        assert len(set(recipes)) == len(recipes)
        base = random_genotypes(space, 1)[0]
        base_id = space.decode(base).recipe_id
        for index, gene in enumerate(space.genes):
            moved = base.copy()
            moved[index] = base[index] + 1e-6 * gene.width * (-1 if base[index] > (gene.low + gene.high) / 2 else 1)
            assert space.decode(moved).recipe_id != base_id, gene.name


@pytest.mark.parametrize("name", ROUTE_SPACES)
def test_every_hop_runs_a_block_there_is(name: str) -> None:
    for space, num_blocks in spaces(name):
        routes = [space.decode(genotype).model for genotype in (*corners(space)[:20], *random_genotypes(space, 50))]
        for route in routes:
            assert isinstance(route, Route)
            assert len(route.models) <= space.num_lanes
            for hop in route.hops:
                assert 0 <= hop.block < num_blocks
                assert math.isfinite(hop.scale)
        if num_blocks > 1:
            assert len({repr(route) for route in routes}) > len(routes) / 4
        start = space.decode(np.array([gene.initial for gene in space.genes])).model
        assert [hop.block for hop in start.hops] == list(range(num_blocks))
        assert {hop.model for hop in start.hops} == {start.ends}
        assert not start.is_scaled


@pytest.mark.parametrize("name", PARAMETER_SPACES)
def test_the_random_seed_is_the_same_for_all_candidates(name: str) -> None:
    space, _ = next(spaces(name))
    seeds = {space.decode(genotype).model.seed for genotype in random_genotypes(space, 5)}
    assert len(seeds) == 1
    assert seeds == ({7} if "dare" in name else {0})


@pytest.mark.parametrize("name", space_presets())
def test_recipes_survive_their_file(name: str) -> None:
    for space, _ in spaces(name):
        for genotype in random_genotypes(space, 3):
            recipe = space.decode(genotype)
            assert parse_recipe(format_recipe(recipe)) == recipe


@pytest.mark.parametrize("name", space_presets())
def test_the_configuration_survives_json(name: str) -> None:
    config = load_space(name)
    again = load_space(config.model_dump(mode="json", exclude_defaults=True, by_alias=True))
    assert again.model_dump() == config.model_dump()


@pytest.mark.parametrize("name", space_presets())
def test_a_wrong_genotype_is_refused(name: str) -> None:
    space, _ = next(spaces(name))
    with pytest.raises(ValueError, match="finite numbers"):
        space.decode(np.zeros(len(space.genes) + 1))
    with pytest.raises(ValueError, match="finite numbers"):
        space.decode(np.full(len(space.genes), np.nan))


def test_every_preset_tells_what_it_is() -> None:
    for path in space_presets().values():
        assert Path(path).read_text().startswith("# "), path
