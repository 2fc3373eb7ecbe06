"""Statistics of the whole model: made once for what they depend on, equal however the model is walked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from evomerge.engine.live_model import LiveModel
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.methods.ties import Ties
from evomerge.recipes.recipe import Merge, Recipe, Rule

from .conftest import Family


def ties(family: Family, density: float, scope: str = "global", **others: Any) -> Merge:
    rules = {"density": density, "trim_scope": scope, **others}
    return Merge("ties", family.experts, family.base, tuple((name, (Rule(value),)) for name, value in rules.items()))


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tensors that were surveyed."""
    seen: list[str] = []
    survey = Ties.survey

    def noted(self: Ties, base: Any, experts: Any, structural: Any, context: Any) -> Any:
        seen.append(context.name)
        return survey(self, base, experts, structural, context)

    monkeypatch.setattr(Ties, "survey", noted)
    return seen


@pytest.fixture
def live(family: Family) -> LiveModel:
    return LiveModel(family.base, family.experts, dtype="float32", device="cpu", threads=2)


def test_a_survey_lasts_as_long_as_what_it_depends_on(family: Family, live: LiveModel, visits: list[str]) -> None:
    names = [slot.name for slot in live.architecture.slots]
    live.apply(Recipe(ties(family, 0.3)))
    assert sorted(visits) == sorted(names)
    live.apply(Recipe(ties(family, 0.6)))
    live.apply(Recipe(ties(family, 0.6, "tensor")))
    live.apply(Recipe(ties(family, 0.3)))
    assert len(visits) == len(names)
    fewer = Merge("ties", family.experts[:2], family.base, ties(family, 0.3).parameters)
    live.apply(Recipe(fewer))
    assert len(visits) == 2 * len(names)


def test_only_tensors_that_ask_are_surveyed(family: Family, live: LiveModel, visits: list[str]) -> None:
    merge = ties(family, 0.3)
    scope = (Rule("global", component="mlp"), Rule("tensor"))
    live.apply(Recipe(Merge("ties", merge.experts, merge.base, (("density", (Rule(0.3),)), ("trim_scope", scope)))))
    assert visits
    assert all(".mlp." in name for name in visits)


def test_one_threshold_for_the_whole_model(family: Family, live: LiveModel) -> None:
    base = {slot.name: live.models.get(family.base).tensor(slot.name).float() for slot in live.architecture.slots}
    source = family.experts[0][1]
    live.apply(Recipe(ties(family, 0.2, coefficient=1.0)))  # warms the state of another set of experts
    one = Merge("ties", family.experts[:1], family.base, ties(family, 0.2).parameters)
    live.apply(Recipe(one, dtype="float32"))
    deltas = {name: live.models.get(source).tensor(name).float() - tensor for name, tensor in base.items()}
    every = torch.cat([delta.abs().flatten() for delta in deltas.values()]).sort(descending=True).values
    threshold = every[int(0.2 * len(every)) - 1]
    for name, parameter in live.model.named_parameters():
        expected = base[name] + torch.where(deltas[name].abs() >= threshold, deltas[name], 0.0)
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-7)


def test_disk_and_memory_agree(family: Family, live: LiveModel, tmp_path: Path) -> None:
    inner = ties(family, 0.4)
    nested = Merge("task_arithmetic", (("merged", inner), family.experts[0]), family.base)
    around = Merge("ties", (("merged", nested), family.experts[1]), family.base, ties(family, 0.5).parameters)
    for number, merge in enumerate((inner, nested, around)):
        recipe = Recipe(merge)
        live.apply(recipe)
        merge_to_disk(recipe, tmp_path / str(number))
        stored = safetensors.torch.load_file(tmp_path / str(number) / "model.safetensors")
        for name, parameter in live.model.named_parameters():
            assert torch.equal(stored[name].float(), parameter), name


def test_what_is_made_of_a_changing_merge_is_not_kept(family: Family, live: LiveModel) -> None:
    def scaled(density: float) -> Recipe:
        rules = (("coefficient", (Rule(0.5),)),)
        return Recipe(Merge("task_arithmetic", (("merged", ties(family, density, "tensor")),), family.base, rules))

    live.apply(Recipe(ties(family, 0.5, "tensor")))
    inner_alone = live.prepared_bytes
    for density in (0.1, 0.2, 0.3):
        live.apply(scaled(density))
        assert live.prepared_bytes == inner_alone
    live.apply(scaled(0.3))
    assert live.prepared_bytes > inner_alone  # asked for twice, so kept
    expected = {name: tensor.clone() for name, tensor in live.model.named_parameters()}
    live.apply(scaled(0.1))
    live.apply(scaled(0.3))
    for name, tensor in live.model.named_parameters():
        assert torch.equal(tensor, expected[name]), name
