"""What spaces over paths refuse, and what they say then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evomerge.errors import InvalidInput
from evomerge.recipes.recipe import Source
from evomerge.spaces.space import ModelShape, SpaceModels
from evomerge.spaces.space_yaml import build_space, load_space

EXPERTS = tuple((name, Source(f"zoo:{name}")) for name in ("math", "spanish", "capitals"))
DEPTHS = {"base": 4, "math": 4, "spanish": 4, "capitals": 6}
SHAPES = tuple((name, ModelShape(depth, (100,) * depth, 50)) for name, depth in DEPTHS.items())
MODELS = SpaceModels(Source("zoo:base"), EXPERTS, 4, 7, "bfloat16", shapes=SHAPES)
LINEAR = {"method": "linear", "parameters": {"coefficient": {"init": "1/n"}}}


def flow(encoding: str = "indicator", **keys: Any) -> dict[str, Any]:
    return {"kind": "data_flow", "encoding": encoding, **keys}


def joint(**keys: Any) -> dict[str, Any]:
    return {"kind": "joint", "parameters": LINEAR, "route": {"encoding": "sequence"}, **keys}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"kind": "data_flow"}, "f.yaml: encoding: missing; it is required. Known: indicator"),
        (flow("indicators"), "f.yaml: encoding: unknown encoding 'indicators'. Did you mean 'indicator'?"),
        (flow(repeat=3), "f.yaml: repeat: unknown key. Did you mean 'repeats'?"),
        (flow(repeats=0), "f.yaml: repeats: expected"),
        (flow(repeats="3"), "f.yaml: repeats: expected a valid integer, got '3'"),
        (flow(sigma=0.7), "f.yaml: sigma: expected less than or equal to 0.5, got 0.7"),
        (flow(pool=[]), "f.yaml: pool: "),
        (flow(pool="math"), "f.yaml: pool: expected a valid list, got 'math'"),
        (flow(pool=["math", "math"]), "f.yaml: pool: a model is listed twice"),
        (flow(scale_target="all"), "f.yaml: scale_target: expected 'stream' or 'branch', got 'all'"),
        (flow(scale={"form": "table"}), "f.yaml: scale.form: expected 'none', 'matrix', 'network' or 'slot'"),
        (flow("sequence", scale={"form": "matrix"}), "f.yaml: scale.form: expected 'none' or 'slot', got 'matrix'"),
        (flow(scale={"form": "slot", "low": 2.0, "high": 1}), "f.yaml: scale: low must be below high, got low 2"),
        (flow(scale={"form": "slot", "init": 3.0}), "f.yaml: scale.init: must lie between low 0 and high 2, got 3"),
        (flow(scale={"form": "slot", "hidden": 3}), "f.yaml: scale.hidden: only counts with form: network"),
        (flow(scale={"form": "network", "init": 0.5}), "f.yaml: scale.init: a network starts at scales of 1"),
        (flow(max_hops=0), "f.yaml: max_hops: expected"),
        (flow(max_parameters="200 million"), "max_parameters: expected a number of parameters such as 200M or 7.2B"),
        (flow(block_size=-1), "f.yaml: block_size: expected"),
        (flow("integration", block_size=2), "f.yaml: block_size: unknown key"),
        (flow("layer_swap", max_hops=9), "f.yaml: max_hops: unknown key"),
        (flow(depths={"mat": 3}, pool=["math"]), "f.yaml: depths.mat: is not in the pool. Did you mean 'math'?"),
        (flow("slices", num_slices=1.5), "f.yaml: num_slices: expected a valid integer"),
        ({"kind": "joint"}, "f.yaml: parameters: missing; it is required"),
        (joint(route=None), "f.yaml: route: missing; it is required"),
        (joint(route=7), "f.yaml: route: expected a mapping or a name, got 7"),
        (joint(routes={}), "f.yaml: routes: unknown key. Did you mean 'route'?"),
        (joint(route={"encoding": "sequenc"}), "f.yaml: route: encoding: unknown encoding 'sequenc'"),
        (joint(route="linear_soup"), "f.yaml: route: expected a search space of kind data_flow, got one of parameter_"),
        (joint(parameters={"method": "lineer"}), "f.yaml: parameters: method: "),
        (joint(parameters="no_such"), "f.yaml: parameters: no search space is called 'no_such'"),
    ],
)
def test_what_a_file_may_not_say(entries: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_space(entries, "f.yaml")
    assert expected in str(caught.value)
    assert all(problem.where.startswith("f.yaml") for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (flow(pool=["math", "spansh"]), "f.yaml: pool: there is no model 'spansh'. Did you mean 'spanish'?"),
        (flow(depths={"math": 5}), "f.yaml: depths.math: says 5 blocks, the model has 4"),
        (flow(depths={"mth": 4}), "f.yaml: depths.mth: is not in the pool. Did you mean 'math'?"),
        (flow(max_hops=1), "max_hops: must allow the first and last of math's units, which is 2 hops; got 1"),
        (flow("sequence", max_hops=3, block_size=2), "max_hops: must allow the first and last of math's units, which"),
        (flow("slices", max_parameters=200), "max_parameters: must allow the first and last of math's units, which is"),
        (flow("integration"), "integration needs models of equal depth: math has 4, spanish has 4, capitals has 6"),
        (
            flow("integration", pool=["math", "spanish"], max_hops=3),
            "f.yaml: max_hops: must allow all of math's blocks, which is 4 hops; got 3",
        ),
        (flow("layer_swap", pool=["math"]), "f.yaml: pool: layer_swap needs a donor"),
        (flow("layer_swap"), "layer_swap needs models of equal depth: math has 4, spanish has 4, capitals has 6"),
        (joint(route={"encoding": "slices", "pool": ["math"]}), "f.yaml: route: pool: lacks 'merged'"),
        (
            joint(parameters={**LINEAR, "groups": {"blocks": 9}}, route={"encoding": "slices", "max_hops": 1}),
            "groups.blocks: 9 groups of blocks are more than the model's 4 blocks\nf.yaml: route: max_hops: must allow",
        ),
    ],
)
def test_what_does_not_fit_the_models(entries: dict[str, Any], expected: str) -> None:
    config = load_space(entries, "f.yaml")
    with pytest.raises(InvalidInput) as caught:
        build_space(config, MODELS)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "name"), [(flow("layer_swap"), "seam"), (flow("layer_swap"), "outside"), (joint(), "merged")]
)
def test_names_of_nodes_are_taken(entries: dict[str, Any], name: str) -> None:
    experts = (("math", Source("a")), (name, Source("b")))
    models = replace(MODELS, experts=experts, shapes=(("math", ModelShape(4)), (name, ModelShape(4))))
    with pytest.raises(InvalidInput, match=f"the name '{name}' is taken"):
        build_space(load_space(entries), models)


def test_too_many_models_for_their_orders() -> None:
    names = [f"m{number}" for number in range(6)]
    models = SpaceModels(
        None, tuple((name, Source(name)) for name in names), None, shapes=tuple((name, ModelShape(2)) for name in names)
    )
    with pytest.raises(InvalidInput, match="integration takes at most 5 models, got 6"):
        build_space(load_space(flow("integration")), models)


def test_all_problems_at_once() -> None:
    entries = flow(pool=["math", "math"], depths={"x": 1}, scale={"form": "slot", "init": 9.0})
    with pytest.raises(InvalidInput) as caught:
        load_space(entries, "f.yaml")
    assert {problem.where for problem in caught.value.problems} == {
        "f.yaml: pool", "f.yaml: depths.x", "f.yaml: scale.init",
    }  # fmt: skip
