"""Routes in recipes: written and read back, equal paths are equal, and everything wrong is said."""

from __future__ import annotations

import pytest

from evomerge.errors import InvalidInput
from evomerge.recipes.recipe import Hop, Merge, Recipe, Route, Rule, Source, Stack, StackPart, route_through
from evomerge.recipes.recipe_yaml import format_recipe, parse_recipe
from evomerge.recipes.validate import recipe_problems

A, B = Source("zoo:a"), Source("zoo:b")
SOUP = Merge("linear", (("a", A), ("b", B)), None, (("coefficient", (Rule(0.3),)),))


def route(**changes: object) -> Route:
    hops = (Hop("a", 0), Hop("soup", 3, 0.5), Hop("a", 0, -1.25), Hop("a", 1))
    entries = {"models": {"a": A, "b": B, "soup": SOUP}, "hops": hops, "ends": "a", **changes}
    return route_through(**entries)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes", [{}, {"scale_target": "branch"}, {"output_scale": 1 / 3}, {"ends": "soup"}, {"hops": (Hop("b", 2),)}]
)
def test_a_route_is_written_and_read_back(changes: dict[str, object]) -> None:
    recipe = Recipe(route(**changes), dtype="float32", tokenizer=B)
    assert not recipe_problems(recipe)
    again = parse_recipe(format_recipe(recipe))
    assert again == recipe
    assert again.recipe_id == recipe.recipe_id


def test_models_that_no_hop_uses_do_not_count() -> None:
    assert [name for name, _ in route().models] == ["a", "soup"]
    assert Recipe(route()).recipe_id == Recipe(route_through({"a": A, "soup": SOUP}, route().hops, "a")).recipe_id


def test_the_ends_lend_architecture_and_tokenizer() -> None:
    assert Recipe(route_through({"a": A, "b": B}, [Hop("a", 0)], "b")).reference == B
    assert Recipe(route()).sources == (A, B)


@pytest.mark.parametrize("other", [{"output_scale": 1.1}, {"scale_target": "branch"}, {"hops": (Hop("a", 0),)}])
def test_other_paths_are_other_recipes(other: dict[str, object]) -> None:
    assert Recipe(route(**other)).recipe_id != Recipe(route()).recipe_id


BAD = {
    "route: []": "route: expected a mapping with models and hops",
    "route: {hops: [[a, 0]]}": "route.models: expected a mapping of names to models (missing",
    "route: {models: {a: zoo:a}}": "route.hops: expected a list of [model, block]",
    "route: {models: {a: zoo:a}, hops: [[a]]}": "route.hops[0]: expected [model, block] or",
    "route: {models: {a: zoo:a}, hops: [[a, 0, .nan]]}": "route.hops[0]: expected [model, block] or",
    "route: {models: {a: zoo:a}, hops: [[a, -1]]}": "route.hops[0]: expected a block of at least 0",
    "route: {models: {a: zoo:a}, hops: [[b, 1]], ends: a}": "route.hops[0]: there is no model 'b'",
    "route: {models: {a: zoo:a}, hops: [[a, 1]], ends: c}": "route.ends: there is no model 'c'",
    "route: {models: {a: zoo:a, b: zoo:b}, hops: [[a, 1]]}": "route.models.b: is used by no hop",
    "route: {models: {a: zoo:a}, hops: [[a, 1]], loops: 2}": "route.loops: unknown key. Did you mean",
    "route: {models: {a: zoo:a}, hops: [[a, 1]], scale_target: all}": "route.scale_target: expected stream or branch",
    "route: {models: {a: zoo:a}, hops: [[a, 1]], scale_target: branch, output_scale: 2}": "route.output_scale: only",
    "route: {models: {a: zoo:a}, hops: [[a, 1]]}\noptions: {num_blocks: 3}": "options.num_blocks: cannot be combined",
    "route: {models: {a: zoo:a}, hops: [[a, 1]]}\ntokenizer: union": "tokenizer: cannot be combined",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_wrong_with_a_route_is_said(text: str) -> None:
    with pytest.raises(InvalidInput) as found:
        parse_recipe(text, "r.yaml")
    assert BAD[text] in str(found.value)


def test_a_route_inside_another_model_is_refused() -> None:
    nested = Recipe(Stack((StackPart(route(), 0, 2),)))
    assert any("a route cannot be a part of another model" in problem.message for problem in recipe_problems(nested))
