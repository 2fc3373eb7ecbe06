from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.errors import InvalidInput, UserError
from evomerge.methods.catalogue import SPECS
from evomerge.recipes.mergekit_writer import llama_tensors
from evomerge.recipes.mergekit_yaml import format_mergekit, parse_mergekit
from evomerge.recipes.recipe import Merge, Recipe, Rule, Source
from evomerge.recipes.recipe_yaml import format_recipe
from evomerge.recipes.resolve import resolve_values
from evomerge.spaces.parameter_space import ParameterSpace
from evomerge.spaces.simplex import coordinates_of, weights_of
from evomerge.spaces.space import SpaceModels
from evomerge.spaces.space_yaml import build_space, load_space, space_presets
from evomerge.terms import GeneKind

EXPERTS = tuple((name, Source(f"zoo:{name}")) for name in ("math", "spanish", "capitals"))
MODELS = SpaceModels(Source("zoo:base"), EXPERTS, 30, 7, "bfloat16")


def space(models: SpaceModels = MODELS, **keys: Any) -> ParameterSpace:
    built = build_space(load_space({"kind": "parameter_space", **keys}, "f.yaml"), models)
    assert isinstance(built, ParameterSpace)
    return built


def initial(made: ParameterSpace) -> Recipe:
    return made.decode(np.array([gene.initial for gene in made.genes]))


def values(recipe: Recipe, tensor: str, num_blocks: int = 30, name: str = "coefficient") -> Any:
    place = next(place for place in llama_tensors(num_blocks) if tensor in place[0])
    assert isinstance(recipe.model, Merge)
    return resolve_values(recipe.model, *place, num_blocks)[name]


COEFFICIENT = {"low": 0.0, "high": 1.5, "init": 0.7}


def numbered(made: ParameterSpace) -> Recipe:
    """A recipe in which gene i has the value i / 100."""
    return made.decode(np.arange(len(made.genes)) / 100)


def test_genes_are_named_by_expert_blocks_and_component() -> None:
    made = space(
        method="task_arithmetic",
        groups={"blocks": 2, "components": ["attention", "other", "embeddings"]},
        parameters={"coefficient": COEFFICIENT},
    )
    assert [gene.name for gene in made.genes][:5] == [
        "coefficient/math/blocks0-14/attention",
        "coefficient/math/blocks0-14/other",
        "coefficient/math/blocks15-29/attention",
        "coefficient/math/blocks15-29/other",
        "coefficient/math/embeddings",
    ]
    assert list(made.gene_groups) == ["coefficient/math", "coefficient/spanish", "coefficient/capitals"]
    assert made.gene_groups["coefficient/spanish"] == [5, 6, 7, 8, 9]


def test_tensors_outside_the_blocks_go_with_the_first_or_last_group() -> None:
    recipe = numbered(
        space(method="task_arithmetic", groups={"blocks": [[0, 9], [10, 29]]}, parameters={"coefficient": COEFFICIENT})
    )
    first, last = (0.0, 0.02, 0.04), (0.01, 0.03, 0.05)
    for tensor, wanted in [
        ("embed_tokens", first), ("layers.9.", first), ("layers.10.", last), ("model.norm", last), ("lm_head", last),
    ]:  # fmt: skip
        assert values(recipe, tensor) == wanted


def test_listed_components_outside_the_blocks_have_their_own_gene() -> None:
    recipe = numbered(
        space(
            method="task_arithmetic",
            groups={"blocks": 2, "components": ["embeddings", "norms", "head", "mlp"]},
            parameters={"coefficient": COEFFICIENT},
        )
    )
    # In each block group norms, mlp, other; then embeddings and head.
    wanted = {
        "layers.0.input_layernorm": 0.00, "layers.0.mlp": 0.01, "layers.0.self_attn": 0.02,
        "layers.29.input_layernorm": 0.03, "layers.29.mlp": 0.04, "layers.29.self_attn": 0.05,
        "model.norm": 0.03, "embed_tokens": 0.06, "lm_head": 0.07,
    }  # fmt: skip
    assert {tensor: values(recipe, tensor)[0] for tensor in wanted} == wanted


def test_a_component_without_tensors_is_refused() -> None:
    tensors = tuple((name, component) for name, _, component in llama_tensors(30) if component != "head")
    tied = replace(MODELS, tensors=tensors)
    space(tied, method="task_arithmetic", groups={"components": {"qk": "(q|k)_proj"}}, parameters={"coefficient": {}})
    for components, message in (
        (["attention", "head"], "head holds no tensor of these models .their head is tied to the embeddings.; take"),
        ({"gates": "expert_gate"}, "groups.components: gates holds no tensor of these models; take it out"),
    ):
        with pytest.raises(InvalidInput, match=message):
            space(tied, method="task_arithmetic", groups={"components": components}, parameters={"coefficient": {}})


def test_patterns_are_components_too() -> None:
    recipe = numbered(
        space(
            method="task_arithmetic",
            groups={"components": {"qk": "(q|k)_proj", "norms": "norms"}},
            parameters={"coefficient": COEFFICIENT},
        )
    )
    for tensor, wanted in [("q_proj", 0.0), ("k_proj", 0.0), ("v_proj", 0.02), ("model.norm", 0.01), ("embed", 0.02)]:
        assert values(recipe, tensor)[0] == wanted


def test_share_takes_groups_together() -> None:
    groups = {"blocks": 3, "components": ["attention", "mlp", "other"]}

    def count(share: list[str]) -> int:
        entry = {"low": 0.1, "high": 1.0, "share": share}
        return len(space(method="ties", groups=groups, parameters={"density": entry}).genes)

    assert count([]) == 27
    assert count(["blocks"]) == 9
    assert count(["components"]) == 9
    assert count(["blocks", "components"]) == 3
    assert count(["blocks", "components", "experts"]) == 1
    per_merge = {"per": "merge", "low": 0.1, "high": 1.0}
    assert len(space(method="ties", parameters={"density": per_merge}).genes) == 1


def test_smooth_puts_knots_from_the_first_to_the_last_block() -> None:
    made = space(method="ties", groups={"blocks": 3}, smooth=True, parameters={"coefficient": COEFFICIENT},
                 fixed={"normalize": False})  # fmt: skip
    assert [gene.name for gene in made.genes][:3] == [f"coefficient/math/knot{k}of3" for k in (1, 2, 3)]
    recipe = made.decode(np.array([0.0, 1.0, 0.5] * 3))
    seen = [values(recipe, f"layers.{block}.", 30)[0] for block in range(30)]
    assert seen == pytest.approx(np.interp(np.arange(30), [0, 14.5, 29], [0.0, 1.0, 0.5]))
    assert values(recipe, "embed_tokens")[0] == 0.0
    assert values(recipe, "model.norm")[0] == 0.5
    assert values(recipe, "lm_head")[0] == 0.5
    assert isinstance(recipe.model, Merge)
    assert len(recipe.model.rules("coefficient")) == 9  # compact: no rule for each block


def test_recipes_are_compact_and_spell_everything_out() -> None:
    made = space(method="dare_ties", groups={"blocks": 30}, parameters={"coefficient": COEFFICIENT},
                 fixed={"density": {"math": 0.5, "spanish": 0.6, "capitals": 1}})  # fmt: skip
    merge = initial(made).model
    assert isinstance(merge, Merge)
    assert {name for name, _ in merge.parameters} == {entry.name for entry in SPECS["dare_ties"].hyperparameters}
    assert len(merge.rules("coefficient")) == 31 * 3
    assert merge.rules("density") == (
        Rule(0.5, expert="math"),
        Rule(0.6, expert="spanish"),
        Rule(1.0, expert="capitals"),
    )
    assert (merge.seed, merge.base, merge.experts) == (7, MODELS.base, EXPERTS)


def test_the_seed_belongs_to_stochastic_methods() -> None:
    made = space(method=["ties", "dare_ties"], parameters={"coefficient": COEFFICIENT}, fixed={"normalize": False})
    ties, dare = (made.decode(np.array([method, 0.5, 0.5, 0.5])).model for method in (0, 1))
    assert isinstance(ties, Merge)
    assert isinstance(dare, Merge)
    assert (ties.method, ties.seed, dare.method, dare.seed) == ("ties", 0, "dare_ties", 7)


def test_a_list_of_methods_is_a_gene() -> None:
    made = space(
        method=["task_arithmetic", "ties"],
        parameters={"coefficient": COEFFICIENT, "density": {"low": 0.1, "high": 1.0, "init": 0.5}},
        fixed={"normalize": False},
    )
    gene = made.genes[0]
    assert (gene.name, gene.kind, gene.choices) == ("method", GeneKind.CATEGORY, ("task_arithmetic", "ties"))
    one, other = np.array([0, 1, 1, 1, 0.2, 0.2, 0.2]), np.array([0, 1, 1, 1, 0.9, 0.9, 0.9])
    assert made.decode(one).recipe_id == made.decode(other).recipe_id  # task arithmetic has no density
    assert made.encode(made.decode(one)).tolist() == [0, 1, 1, 1, 0.5, 0.5, 0.5]
    one[0] = other[0] = 1
    assert made.decode(one).recipe_id != made.decode(other).recipe_id


def test_choices_and_truth_values_are_categories() -> None:
    made = space(
        method="dare_linear",
        parameters={"rescale": {"choices": ["l1", "none"]}, "normalize": {"share": ["blocks"]}},
        fixed={"coefficient": 0.5},
    )
    assert [(gene.name, gene.choices) for gene in made.genes] == [
        ("rescale", ("l1", "none")),
        ("normalize", ("false", "true")),
    ]
    recipe = made.decode(np.array([1.0, 1.0]))
    assert values(recipe, "mlp", name="rescale") == "none"
    assert values(recipe, "mlp", name="normalize") is True
    assert made.encode(recipe).tolist() == [1.0, 1.0]


def test_slerp_takes_the_base_beside_a_single_expert() -> None:
    keys = {"method": "slerp", "parameters": {"t": {"low": 0.0, "high": 1.0}}}
    one = initial(space(replace(MODELS, experts=EXPERTS[:1]), **keys)).model
    two = initial(space(replace(MODELS, experts=EXPERTS[:2]), **keys))
    assert isinstance(one, Merge)
    assert isinstance(two.model, Merge)
    assert (one.base, two.model.base, two.tokenizer) == (MODELS.base, None, MODELS.base)


def test_a_recipe_may_be_the_start(tmp_path: Path) -> None:
    merge = Merge("task_arithmetic", EXPERTS, MODELS.base, (("coefficient", (Rule(0.2, (0, 10)), Rule((0.0, 1.0)))),))
    (tmp_path / "start.yaml").write_text(format_recipe(Recipe(merge)))
    (tmp_path / "space.yaml").write_text(
        "kind: parameter_space\nmethod: task_arithmetic\ngroups: {blocks: 3}\n"
        "parameters: {coefficient: {low: 0, high: 1.5}}\ninit_from: start.yaml\n"
    )
    made = build_space(load_space("space.yaml", "f", tmp_path), MODELS)
    assert made is not None
    starts = [gene.initial for gene in made.genes]
    assert starts == pytest.approx([0.2, 14 / 29, 24 / 29] * 3)
    assert made.genes[0].low == 0.0
    assert "starting at" in made.describe()
    dumped = load_space("space.yaml", "f", tmp_path).model_dump(mode="json", exclude_defaults=True, by_alias=True)
    assert build_space(load_space(dumped, "resolved"), MODELS).genes == made.genes  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        (Merge("ties", EXPERTS, MODELS.base), "method is ties"),
        (Merge("task_arithmetic", EXPERTS[:2], MODELS.base), "experts are math, spanish, expected"),
        (Merge("task_arithmetic", EXPERTS, MODELS.base, (("coefficient", (Rule(1.7),)),)), "1.7 lies outside 0 to 1.5"),
        (Source("x"), "one model, not a merge"),
    ],
)
def test_recipes_that_are_not_in_the_space(merge: Merge | Source, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        space(method="task_arithmetic", parameters={"coefficient": COEFFICIENT}).encode(Recipe(merge))


def test_the_space_waits_for_the_number_of_blocks() -> None:
    unknown = replace(MODELS, num_blocks=None)
    grouped = load_space({"kind": "parameter_space", "method": "ties", "groups": {"blocks": 2},
                          "parameters": {"density": {"low": 0.1, "high": 1}}})  # fmt: skip
    assert build_space(grouped, unknown) is None
    assert build_space(load_space("dare_ties_whole_model"), unknown) is not None


# DARE rescales otherwise, and a method around the merge makes it a merge of merges.
RUN_BY_MERGEKIT = [
    name
    for name in space_presets()
    if load_space(name).kind == "parameter_space" and "dare" not in name and name != "balanced_actor"
]


@pytest.mark.parametrize("name", RUN_BY_MERGEKIT)
def test_mergekit_can_run_what_the_presets_give(name: str) -> None:
    experts = EXPERTS[:2] if "slerp" in name else EXPERTS
    made = build_space(load_space(name), replace(MODELS, experts=experts, num_blocks=8))
    assert made is not None
    recipe = made.decode(np.array([0.9 * gene.initial for gene in made.genes]))
    back = parse_mergekit(format_mergekit(recipe, 8))
    assert isinstance(recipe.model, Merge)
    assert isinstance(back.model, Merge)
    for tensor in llama_tensors(8):
        wanted, found = resolve_values(recipe.model, *tensor, 8), resolve_values(back.model, *tensor, 8)
        assert wanted.keys() == found.keys()
        for key, value in wanted.items():
            assert found[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-12)), key


class TestSimplex:
    def test_equal_weights_are_exact(self) -> None:
        for count in range(2, 13):
            assert weights_of(coordinates_of([1 / count] * count)) == (1 / count,) * count
        made = space(method="linear", parameters={"coefficient": {"init": "1/n"}})
        assert values(initial(made), "mlp") == (1 / 3,) * 3
        assert [gene.name for gene in made.genes] == ["coefficient_share/math", "coefficient_share/spanish"]

    def test_every_inner_point_is_reached(self) -> None:
        rng = np.random.default_rng(0)
        for count in (2, 3, 5, 8):
            for weights in rng.dirichlet(np.ones(count), 200):
                coordinates = coordinates_of(weights.tolist())
                assert all(0 < coordinate < 1 for coordinate in coordinates)
                np.testing.assert_allclose(weights_of(coordinates), weights, rtol=0, atol=1e-11)

    def test_different_coordinates_are_different_weights(self) -> None:
        rng = np.random.default_rng(0)
        for coordinates in rng.uniform(0.01, 0.99, (200, 3)):
            np.testing.assert_allclose(
                coordinates_of(weights_of(coordinates.tolist())), coordinates, rtol=0, atol=1e-11
            )

    def test_corners_are_single_experts(self) -> None:
        assert weights_of((1.0, 0.3)) == (1.0, 0.0, 0.0)
        assert weights_of((0.0, 1.0)) == (0.0, 1.0, 0.0)
        assert weights_of((0.0, 0.0)) == (0.0, 0.0, 1.0)
        assert coordinates_of((1.0, 0.0, 0.0)) == (1.0, 0.5)

    def test_ties_with_normalize_is_on_the_simplex(self) -> None:
        made = space(method="ties", groups={"blocks": 2}, smooth=True, parameters={"coefficient": {"init": "1/n"}})
        assert len(made.genes) == 4
        recipe = made.decode(np.array([0.2, 0.9, 0.4, 0.1]))
        for block in range(30):
            assert sum(values(recipe, f"layers.{block}.")) == pytest.approx(1.0)

    def test_start_at_given_weights(self) -> None:
        start = {"math": 0.5, "spanish": 0.25, "capitals": 0.25}
        made = space(method="linear", parameters={"coefficient": {"init": start}})
        assert values(initial(made), "mlp") == (0.5, 0.25, 0.25)
