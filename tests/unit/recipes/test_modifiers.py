from __future__ import annotations

import pytest

from evomerge.errors import InvalidInput
from evomerge.recipes.recipe import Merge, Rule, Source
from evomerge.recipes.recipe_yaml import format_recipe, parse_recipe

B, M, S = Source("b"), Source("m"), Source("s")

AROUND = """
method: ties
base: b
experts: {math: m, spanish: s}
parameters: {density: 0.3}
before:
  - {method: star, parameters: {eta: 50.0}}
  - {method: dare_linear, parameters: {density: {expert: 0.4}}, seed: 9}
after:
  - {method: task_arithmetic, parameters: {coefficient: 0.7}}
  - {method: metagpt, parameters: {lambda: [0.5, 1.0]}, base: other}
seed: 3
"""


def test_methods_around_a_merge_are_merges() -> None:
    recipe = parse_recipe(AROUND)

    def before(name: str, source: Source) -> Merge:
        star = Merge("star", ((name, source),), B, (("eta", (Rule(50.0),)),), 3)
        return Merge("dare_linear", ((name, star),), B, (("density", (Rule(0.4, expert=name),)),), 9)

    experts = (("math", before("math", M)), ("spanish", before("spanish", S)))
    ties = Merge("ties", experts, B, (("density", (Rule(0.3),)),), 3)
    scaled = Merge("task_arithmetic", (("merged", ties),), B, (("coefficient", (Rule(0.7),)),), 3)
    assert recipe.model == Merge(
        "metagpt", (("merged", scaled),), Source("other"), (("lambda", (Rule((0.5, 1.0)),)),), 3
    )
    assert parse_recipe(format_recipe(recipe)) == recipe


def test_a_method_of_many_experts_gets_the_merged_model_first() -> None:
    text = "method: ties\nbase: b\nexperts: {math: m, spanish: s}\nafter: [{method: model_stock}]"
    merge = parse_recipe(text).model
    assert isinstance(merge, Merge)
    assert [name for name, _ in merge.experts] == ["merged", "math", "spanish"]
    assert isinstance(merge.experts[0][1], Merge)
    assert merge.experts[1:] == (("math", M), ("spanish", S))


@pytest.mark.parametrize(
    ("around", "where", "message"),
    [
        ("before: star", "before", "expected a list"),
        ("before: [star]", "before[0]", "expected a mapping"),
        ("after: [{method: linez}]", "after[0].method", "no merge method is called 'linez'"),
        ("after: [{parameters: {}}]", "after[0].method", "no merge method"),
        ("after: [{method: star, experts: {}}]", "after[0].experts", "unknown key"),
        ("before: [{method: star, parameters: {etaa: 1}}]", "experts.math.parameters.etaa", "no such parameter"),
        ("before: [{method: slerp}]", "experts.math.parameters.t", "missing"),
        ("after: [{method: dare_linear, seed: x}]", "seed", "whole number"),
    ],
)
def test_what_is_wrong_is_named(around: str, where: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_recipe(f"method: ties\nbase: b\nexperts: {{math: m, spanish: s}}\n{around}", "r.yaml")
    assert [p for p in caught.value.problems if p.where == f"r.yaml: {where}" and message in p.message], str(
        caught.value
    )


class TestBalancedActor:
    TEXT = "preset: balanced_actor\ninstruct: m\nreasoning: s\npretrained: b\nalpha: 0.6\nbeta: 0.25\ndtype: bfloat16"

    def test_is_one_merge_inside_another(self) -> None:
        recipe = parse_recipe(self.TEXT)
        coefficients = (Rule(0.6, expert="instruct"), Rule(0.4, expert="reasoning"))
        inner = Merge(
            "linear", (("instruct", M), ("reasoning", S)), None,
            (("coefficient", coefficients), ("normalize", (Rule(False),))),
        )  # fmt: skip
        outer = Merge("task_arithmetic", (("merged", inner),), B, (("coefficient", (Rule(0.25),)),))
        assert (recipe.model, recipe.dtype) == (outer, "bfloat16")
        assert recipe.reference == B

    @pytest.mark.parametrize(
        ("change", "where", "message"),
        [
            (("balanced_actor", "balanced"), "preset", "balanced_actor"),
            (("instruct: m\n", ""), "instruct", "missing"),
            (("alpha: 0.6", "alpha: 1.6"), "alpha", "from 0 to 1"),
            (("alpha: 0.6", "alfa: 0.6"), "alfa", "alpha"),
        ],
    )
    def test_what_is_wrong_is_named(self, change: tuple[str, str], where: str, message: str) -> None:
        with pytest.raises(InvalidInput) as caught:
            parse_recipe(self.TEXT.replace(*change), "r.yaml")
        assert [p for p in caught.value.problems if p.where == f"r.yaml: {where}" and message in p.message]
