"""What a base_model means in mergekit's dialect, which differs from method to method."""

from __future__ import annotations

import pytest

from evomerge.recipes.mergekit_yaml import format_mergekit, parse_mergekit
from evomerge.recipes.recipe import Merge, Recipe

MODELS = "models: [{model: zoo:a, parameters: {weight: 0.3}}, {model: zoo:b, parameters: {weight: 0.7}}]\n"


def read(text: str) -> Merge:
    model = parse_mergekit(text, "test.yml").model
    assert isinstance(model, Merge)
    return model


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_a_base_that_is_optional_is_kept_and_written(method: str) -> None:
    with_base = read(f"merge_method: {method}\nbase_model: zoo:base\n{MODELS}")
    assert with_base.base is not None
    assert with_base.base.model == "zoo:base"  # type: ignore[union-attr]
    assert [name for name, _ in with_base.experts] == ["a", "b"]
    again = read(format_mergekit(Recipe(with_base), 2))
    assert (again.base, again.experts) == (with_base.base, with_base.experts)
    without = read(f"merge_method: {method}\n{MODELS}")
    assert without.base is None


def test_karcher_counts_a_base_that_is_not_listed() -> None:
    merge = read("merge_method: karcher\nbase_model: zoo:base\nmodels: [{model: zoo:a}, {model: zoo:b}]\n")
    assert merge.base is None
    assert [source.model for _, source in merge.experts] == ["zoo:a", "zoo:b", "zoo:base"]  # type: ignore[union-attr]
