"""Paths through blocks as genes: what each encoding decodes to, its start, its limits, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evomerge.errors import UserError
from evomerge.recipes.recipe import Hop, Merge, Recipe, Route, Source, route_through
from evomerge.recipes.recipe_yaml import format_recipe, parse_recipe
from evomerge.recipes.validate import recipe_problems
from evomerge.spaces.data_flow import DataFlowSpace
from evomerge.spaces.space import ModelShape, SpaceModels
from evomerge.spaces.space_yaml import build_space, load_space
from evomerge.terms import Array, GeneKind

NODES = {name: Source(f"zoo:{name}") for name in ("math", "spanish", "capitals")}


def models_of(**depths: int) -> SpaceModels:
    """Experts of given depths; block b of a model has 100 + b weights, the outside 1,000."""
    shapes = tuple((name, ModelShape(n, tuple(range(100, 100 + n)), 1000)) for name, n in depths.items())
    experts = tuple((name, NODES[name]) for name in depths)
    return SpaceModels(Source("zoo:base"), experts, None, 7, "bfloat16", shapes=shapes)


def space_of(models: SpaceModels, encoding: str, **keys: Any) -> DataFlowSpace:
    built = build_space(load_space({"kind": "data_flow", "encoding": encoding, **keys}, "f.yaml"), models)
    assert isinstance(built, DataFlowSpace)
    return built


def initial(space: DataFlowSpace) -> Array:
    return np.array([gene.initial for gene in space.genes], dtype=np.float64)


def random_genotypes(space: DataFlowSpace, count: int) -> Array:
    rng = np.random.default_rng(3)
    low = np.array([gene.low for gene in space.genes])
    high = np.array([gene.high for gene in space.genes])
    values = low + (high - low) * rng.random((count, len(low)))
    return np.where([gene.kind is not GeneKind.REAL for gene in space.genes], np.round(values), values)


def with_genes(space: DataFlowSpace, **values: float) -> Array:
    """The initial genotype with some genes set; ``__`` in a keyword stands for ``/``."""
    names = [gene.name for gene in space.genes]
    genotype = initial(space)
    for name, value in values.items():
        genotype[names.index(name.replace("__", "/"))] = value
    return genotype


def route_of(space: DataFlowSpace, genotype: Array) -> Route:
    route = space.decode(genotype).model
    assert isinstance(route, Route)
    return route


def path_of(route: Route) -> list[str]:
    return [f"{hop.model}:{hop.block}" for hop in route.hops]


def blocks(name: str, *numbers: int) -> list[str]:
    return [f"{name}:{number}" for number in numbers]


TWO = models_of(math=4, spanish=4)
UNEQUAL = models_of(math=4, spanish=7, capitals=2)
SCALES = {"form": "slot"}
CASES: list[tuple[SpaceModels, dict[str, Any]]] = [
    *((TWO, {"encoding": "indicator", "scale": {"form": form}}) for form in ("none", "matrix", "network", "slot")),
    (UNEQUAL, {"encoding": "indicator", "repeats": 2, "scale": {"form": "matrix"}, "block_size": 2}),
    (UNEQUAL, {"encoding": "indicator", "fixed_ends": False, "scale": SCALES, "scale_target": "branch"}),
    (UNEQUAL, {"encoding": "sequence", "scale": SCALES}),
    (UNEQUAL, {"encoding": "sequence", "max_hops": 9, "block_size": 3, "pool": ["spanish", "math"]}),
    (UNEQUAL, {"encoding": "slices", "scale": SCALES, "num_slices": 4}),
    (UNEQUAL, {"encoding": "slices", "num_slices": 1, "block_size": 2}),
    (models_of(math=1, spanish=1), {"encoding": "slices"}),
    (models_of(math=5), {"encoding": "slices", "num_slices": 2}),
    (TWO, {"encoding": "integration"}),
    (models_of(math=3, spanish=3, capitals=3), {"encoding": "integration", "scale_target": "branch"}),
    (models_of(math=3), {"encoding": "integration", "scale": {"form": "none"}}),
    (TWO, {"encoding": "layer_swap", "outside": True}),
    (models_of(math=7, spanish=7, capitals=7), {"encoding": "layer_swap", "scale_target": "branch"}),
    (models_of(math=6, spanish=6), {"encoding": "layer_swap", "seams": False}),
]


@pytest.mark.parametrize(("models", "keys"), CASES)
def test_genotypes_are_paths_through_blocks_that_there_are(models: SpaceModels, keys: dict[str, Any]) -> None:
    space = space_of(models, **keys)
    depths = {name: shape.num_blocks for name, shape in models.shapes}
    low = np.array([gene.low for gene in space.genes])
    high = np.array([gene.high for gene in space.genes])
    eye = np.eye(len(low), dtype=bool)
    corners = [np.where(bits, high, low) for bits in (*eye, *~eye, np.ones(len(low)), np.zeros(len(low)))]
    for index, genotype in enumerate((*corners[:60], initial(space), *random_genotypes(space, 1000))):
        recipe = space.decode(genotype)
        route = recipe.model
        assert isinstance(route, Route)
        assert route.hops[0].scale == 1
        for hop in route.hops:
            assert 0 <= hop.block < depths.get(hop.model, depths["math"])
        is_read = keys.get("scale", {}).get("form") != "network" or not route.is_scaled
        if is_read and index < 200:
            encoded = space.encode(recipe)
            assert space.decode(encoded) == recipe
            assert np.array_equal(space.encode(recipe), encoded)
        if index % 50 == 0:
            assert not recipe_problems(recipe)
            assert parse_recipe(format_recipe(recipe)) == recipe
    assert space.num_lanes == len(keys.get("pool", models.experts)) + (
        keys.get("seams", True) + keys.get("outside", False) if keys["encoding"] == "layer_swap" else 0
    )


@pytest.mark.parametrize(("models", "keys"), CASES)
def test_the_start_is_the_first_model(models: SpaceModels, keys: dict[str, Any]) -> None:
    space = space_of(models, **keys)
    route = route_of(space, initial(space))
    first = keys.get("pool", models.names)[0]
    depth = dict(models.shapes)[first].num_blocks
    assert route == route_through(NODES, [Hop(first, n) for n in range(depth)], first, route.scale_target)
    assert space.decode(initial(space)).reference == NODES[first]
    assert np.array_equal(space.encode(Recipe(route)), initial(space))


LIMITED = [
    {"encoding": "indicator"},
    {"encoding": "indicator", "fixed_ends": False, "scale": {"form": "slot"}},
    {"encoding": "sequence"},
    {"encoding": "sequence", "block_size": 2},
    {"encoding": "slices", "block_size": 3},
    {"encoding": "integration"},
]


@pytest.mark.parametrize("keys", LIMITED)
@pytest.mark.parametrize("limits", [{"max_hops": 6}, {"max_parameters": 1450}, {"max_hops": 7, "max_parameters": 1520}])
def test_no_path_is_over_the_limits(keys: dict[str, Any], limits: dict[str, int]) -> None:
    models = TWO if keys["encoding"] == "integration" else models_of(math=4, spanish=7)
    space = space_of(models, **keys, **limits)
    tight = 0
    for index, genotype in enumerate(random_genotypes(space, 1000)):
        recipe = space.decode(genotype)
        assert isinstance(recipe.model, Route)
        if index < 100:
            assert space.decode(space.encode(recipe)) == recipe
        hops = {(hop.model, hop.block) for hop in recipe.model.hops}
        assert len(recipe.model.hops) <= limits.get("max_hops", 99)
        assert 1000 + sum(100 + block for _, block in hops) <= limits.get("max_parameters", 9999)
        tight += len(recipe.model.hops) == limits.get("max_hops")
    if keys["encoding"] in ("indicator", "integration") and "max_parameters" not in limits:
        assert tight > 200  # cut to the limit, not further


def test_slots_with_the_smallest_indicators_go_first() -> None:
    space = space_of(TWO, "indicator", repeats=1, max_hops=4)
    genotype = np.array([0.5, 0.4, -1.0, 0.3, 0.4, 0.9, 0.0, 0.1])
    # Running are math 0, 1, 3 and spanish 0, 1 and 3; equal indicators: the later slot goes.
    assert path_of(route_of(space, genotype)) == ["math:0", "math:0", "spanish:1", "math:3"]
    genotype[0] = 0.35
    assert path_of(route_of(space, genotype)) == ["math:0", "math:1", "spanish:1", "math:3"]


def test_indicators_of_the_first_repetition_are_the_first_model() -> None:
    space = space_of(TWO, "indicator", fixed_ends=False, scale={"form": "matrix"})
    genotype = with_genes(space)
    assert space.genes[0].initial == pytest.approx(0.2)  # two sigma
    assert [gene.initial for gene in space.genes[4:24]] == [0.0] * 20
    assert path_of(route_of(space, genotype)) == blocks("math", 0, 1, 2, 3)
    assert not route_of(space, genotype).is_scaled


@pytest.mark.parametrize("fixed", [True, False])
def test_indicators_all_off_and_all_on(fixed: bool) -> None:
    space = space_of(UNEQUAL, "indicator", fixed_ends=fixed)
    count = len(space.genes)
    assert path_of(route_of(space, np.full(count, -0.1))) == blocks("math", 0, 3)
    everything = [*blocks("math", *range(4)), *blocks("spanish", *range(7)), *blocks("capitals", 0, 1)] * 3
    expected = ["math:0", *everything, "math:3"] if fixed else everything
    assert path_of(route_of(space, np.full(count, 0.1))) == expected
    assert count == 39 == len(expected) - (2 if fixed else 0)


def test_scales_are_those_of_the_published_pseudocode() -> None:
    """Reference: arXiv 2403.13187, its search written out by hand."""
    space = space_of(TWO, "indicator", scale={"form": "matrix"})
    num_layers, repeats = 8, 3
    for genotype in random_genotypes(space, 20):
        indicators, matrix = genotype[:24], genotype[24:].reshape(num_layers, num_layers)
        path = [0]
        for t in range(num_layers * repeats):
            if indicators[t] > 0:
                path.append(t % num_layers)
        path.append(3)
        expected, previous = [], None
        for layer in path:
            scale = 1.0 if previous is None else matrix[previous, layer]
            expected.append(Hop("math" if layer < 4 else "spanish", layer % 4, float(scale)))
            previous = layer
        assert route_of(space, genotype).hops == tuple(expected)
    names = [gene.name for gene in space.genes]
    changed = with_genes(space, **{"scale__math:1>math:2": 0.25, "scale__math:2>math:1": 0.75})
    assert [hop.scale for hop in route_of(space, changed).hops] == [1, 1, 0.25, 1]
    assert names[24 + 8 * 1 + 6] == "scale/math:1>spanish:2"


def test_network_scales_follow_the_formula() -> None:
    space = space_of(TWO, "indicator", scale={"form": "network", "hidden": 2, "low": 0.5, "high": 1.5})
    genotype = random_genotypes(space, 1)[0]
    route = route_of(space, genotype)
    genes = genotype[24:]
    first, bias, second, last = genes[:6].reshape(2, 3), genes[6:8], genes[8:10], genes[10]
    numbers = [hop.block + (4 if hop.model == "spanish" else 0) for hop in route.hops]
    for step in range(1, len(numbers)):
        inputs = np.array([numbers[step - 1] / 8, numbers[step] / 8, step / 24])
        wanted = np.clip(1 + second @ np.tanh(first @ inputs + bias) + last, 0.5, 1.5)
        assert route.hops[step].scale == pytest.approx(wanted)
    with pytest.raises(UserError, match="cannot be read back"):
        space.encode(Recipe(route))


def test_the_published_space_has_its_size() -> None:
    built = build_space(
        load_space({"kind": "data_flow", "encoding": "indicator", "scale": {"form": "matrix"}, "pool": ["a", "b"],
                    "depths": {"a": 32, "b": 32}}),
        SpaceModels(None, (("a", Source("org/a")), ("b", Source("org/b"))), None),
    )  # fmt: skip
    assert built is not None
    assert len(built.genes) == 4288
    assert {name: len(members) for name, members in built.gene_groups.items()} == {
        "run/1": 64, "run/2": 64, "run/3": 64, "scale": 4096,
    }  # fmt: skip
    assert len(route_of(built, np.full(4288, 1.0)).hops) == 194  # type: ignore[arg-type]


def test_integration_positions_orders_and_scales() -> None:
    space = space_of(TWO, "integration")
    genotype = with_genes(
        space, use__spanish__position1=1, order__position1=1, use__math__position2=0, use__math__position3=0,
        use__spanish__position3=1, scale__position0=0.5, scale__position1=1.5, scale__position3=0.25,
    )  # fmt: skip
    route = route_of(space, genotype)
    assert path_of(route) == ["math:0", "spanish:1", "math:1", "math:2", "spanish:3"]
    assert [hop.scale for hop in route.hops] == [1, 0.5, 1, 1.5, 1]
    assert route.output_scale == 0.25
    assert space.genes[2].choices == ("math,spanish", "spanish,math")
    branch = space_of(TWO, "integration", scale_target="branch")
    assert len(branch.genes) == len(space.genes) - 1  # nothing to scale behind the last block


def test_integration_over_the_limit_loses_blocks_from_the_end() -> None:
    space = space_of(TWO, "integration", max_hops=6)
    every = np.array([1.0 if gene.name.startswith(("use", "scale")) else 0.0 for gene in space.genes])
    assert path_of(route_of(space, every)) == ["math:0", "spanish:0", "math:1", "spanish:1", "math:2", "math:3"]


def test_a_sequence_is_read_without_its_gaps() -> None:
    space = space_of(TWO, "sequence", max_hops=6, scale={"form": "slot", "high": 3.0})
    assert {gene.sequence for gene in space.genes[:6]} == {"hops"}
    assert space.genes[0].choices == (*blocks("math", 0, 1, 2, 3), *blocks("spanish", 0, 1, 2, 3), "-")
    genotype = np.array([8, 5, 8, 5, 0, 8, 0.1, 0.2, 0.3, 2.5, 1.0, 0.6])
    route = route_of(space, genotype)
    assert [(hop.model, hop.block, hop.scale) for hop in route.hops] == [
        ("spanish", 1, 1.0), ("spanish", 1, 2.5), ("math", 0, 1.0),
    ]  # fmt: skip
    assert space.encode(Recipe(route)).tolist() == [5, 5, 0, 8, 8, 8, 1.0, 2.5, 1.0, 1.0, 1.0, 1.0]
    assert path_of(route_of(space, np.array([8.0] * 6 + [1.5] * 6))) == blocks("math", 0, 3)


def test_units_are_runs_of_neighbouring_blocks() -> None:
    space = space_of(UNEQUAL, "sequence", block_size=3, max_hops=12)
    assert space.genes[0].choices == (
        "math:0-2",
        "math:3",
        "spanish:0-2",
        "spanish:3-5",
        "spanish:6",
        "capitals:0-1",
        "-",
    )
    assert len(space.genes) == 4
    assert path_of(route_of(space, np.array([5.0, 3.0, 6.0, 6.0]))) == [
        *blocks("capitals", 0, 1),
        *blocks("spanish", 3, 4, 5),
    ]
    with pytest.raises(UserError, match=r"hop 0 of the recipe \(math block 1\) is not a unit"):
        space.encode(Recipe(route_through(NODES, [Hop("math", 1)], "math")))


def test_two_slices_of_one_model_scale_its_depth_up() -> None:
    """SOLAR: 32 blocks without the last 8, then without the first 8."""
    space = space_of(models_of(math=32), "slices", num_slices=2, scale=SCALES)
    values = {"slice1__length": 24, "slice2__start": 8, "slice2__length": 24, "scale__slice2": 0.5}
    genotype = with_genes(space, **values)
    route = route_of(space, genotype)
    assert path_of(route) == blocks("math", *range(24), *range(8, 32))
    assert [index for index, hop in enumerate(route.hops) if hop.scale != 1] == [24]
    assert np.array_equal(space.encode(Recipe(route)), genotype)


def test_slices_end_with_their_model() -> None:
    space = space_of(UNEQUAL, "slices")
    genotype = with_genes(
        space, slice1__length=0, slice2__source=2, slice2__start=6, slice2__length=7, slice3__length=7
    )
    assert path_of(route_of(space, genotype)) == [*blocks("capitals", 1), *blocks("math", 0, 1, 2, 3)]
    assert path_of(route_of(space, with_genes(space, slice1__length=0))) == blocks("math", 0, 3)


def test_layer_swap_copies_outside_the_seams() -> None:
    models = models_of(math=8, spanish=8, capitals=8)
    space = space_of(models, "layer_swap", outside=True)
    genotype = with_genes(
        space, donor=1, bottom=2, top=1, seam_bottom=2, seam_top=1, seam_weight=0.25, outside_weight=0.75
    )
    route = route_of(space, genotype)
    assert path_of(route) == [
        "capitals:0", "capitals:1", "seam:2", "seam:3", "math:4", "math:5", "seam:6", "capitals:7",
    ]  # fmt: skip
    seam, outside = dict(route.models)["seam"], dict(route.models)["outside"]
    for node, weight in ((seam, 0.25), (outside, 0.75)):
        assert isinstance(node, Merge)
        assert node.method == "linear"
        assert node.experts == (("math", NODES["math"]), ("capitals", NODES["capitals"]))
        assert [(rule.expert, rule.value) for rule in node.rules("coefficient")] == [
            ("math", 1 - weight), ("capitals", weight),
        ]  # fmt: skip
    assert route.ends == "outside"
    assert Recipe(route).reference == NODES["math"]
    assert np.array_equal(space.encode(Recipe(route)), genotype)
    half = route_of(space, with_genes(space, bottom=4, top=4, seam_bottom=3))
    assert path_of(half) == blocks("spanish", *range(8))
    assert half.ends == "math"


def test_routes_that_no_genes_give_are_refused() -> None:
    space = space_of(TWO, "sequence", max_hops=5)
    hops = [Hop("math", 0), Hop("spanish", 1)]
    good = route_through(NODES, hops, "math")
    assert space.encode(Recipe(good)).tolist() == [0, 5, 8, 8, 8]
    other = {**NODES, "math": Source("zoo:other")}
    bad: list[tuple[Any, str]] = [
        (NODES["math"], "has no route"),
        (route_through(other, hops, "math"), "model 'math' is not in the pool"),
        (route_through(NODES, hops, "spanish"), "ends are spanish's"),
        (route_through(NODES, hops, "math", "branch"), "scale_target is branch"),
        (route_through(NODES, hops, "math", output_scale=0.5), "output scale 0.5"),
        (route_through(NODES, [*hops, Hop("math", 1, 0.5)], "math"), "scales other than 1"),
        (route_through(NODES, hops * 3, "math"), "over the space's max_hops"),
        (route_through(NODES, [Hop("capitals", 0)], "math"), "model 'capitals' is not in the pool"),
    ]
    for model, message in bad:
        with pytest.raises(UserError, match=message):
            space.encode(Recipe(model))


def test_models_of_earlier_stages_and_the_base_lend_blocks() -> None:
    merged = Merge("linear", (("math", NODES["math"]), ("spanish", NODES["spanish"])))
    models = SpaceModels(
        Source("zoo:base"), TWO.experts, None, 7, None,
        shapes=(*TWO.shapes, ("base", ModelShape(3))), extra=(("stage1", merged),),
    )  # fmt: skip
    space = space_of(models, "sequence", pool=["stage1", "base"])
    recipe = space.decode(initial(space))
    assert recipe.model == route_through({"stage1": merged}, [Hop("stage1", n) for n in range(4)], "stage1")
    assert space.genes[0].choices[4:] == ("base:0", "base:1", "base:2", "-")
    assert space_of(models, "sequence").num_lanes == 3  # by default earlier stages and experts, not the base


def test_unknown_depths_are_waited_for() -> None:
    unknown = SpaceModels(None, TWO.experts, None)
    config = {"kind": "data_flow", "encoding": "sequence"}
    assert build_space(load_space(config), unknown) is None
    told = {**config, "depths": {"math": 3, "spanish": 5}}
    built = build_space(load_space(told), unknown)
    assert built is not None
    assert len(built.genes[0].choices) == 9
    assert build_space(load_space({**told, "max_parameters": "1.5k"}), unknown) is None  # sizes are not known
