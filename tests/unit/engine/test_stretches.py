"""Models made of stretches of seeds: inner products from files, recipes in memory and on disk against dense SLERP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from evomerge.engine import seed_models
from evomerge.engine.live_model import LiveModel
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.engine.model_tensors import OpenModels
from evomerge.engine.seed_models import SeedModels
from evomerge.errors import InvalidInput, UserError
from evomerge.recipes.recipe import Recipe, Source
from evomerge.recipes.recipe_yaml import format_recipe, parse_recipe
from evomerge.search.lineage import Cut, Lineage, crossover
from evomerge.search.seed_gram import CellGram
from evomerge.spaces.lineage_space import LineageConfig, LineageSpace, build_lineage
from evomerge.spaces.space import SpaceModels

from .conftest import Family, fine_tuned, tiny_config, tiny_model

Vector = np.ndarray[Any, np.dtype[np.float64]]


def seeds_of(family: Family) -> SeedModels:
    return SeedModels(family.base, [source for _, source in family.experts], family.experts)


def gram_of(seeds: SeedModels) -> CellGram:
    return CellGram(seeds.read, seeds.edges, seeds.cells(), seeds.products)


def space_of(family: Family, **keys: Any) -> LineageSpace:
    slots = OpenModels(family.base, [source for _, source in family.experts]).architecture.slots
    tensors, sizes = tuple((s.name, s.component) for s in slots), tuple(s.num_elements for s in slots)
    config = LineageConfig.model_validate({"kind": "lineage", **keys})
    space = build_lineage(config, SpaceModels(family.base, family.experts, 2, tensors=tensors, sizes=sizes))
    assert space is not None
    return space


def dense(family: Family) -> list[Vector]:
    models = OpenModels(family.base, [source for _, source in family.experts])
    return [
        np.concatenate(
            [models.tensor(source, slot.name).double().reshape(-1).numpy() for slot in models.architecture.slots]
        )
        for _, source in family.experts
    ]


def slerp(a: Vector, b: Vector, weight: float) -> Vector:
    angle = np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))
    if np.sin(angle) <= 1e-6:
        return (1 - weight) * a + weight * b
    found: Vector = (np.sin((1 - weight) * angle) * a + np.sin(weight * angle) * b) / np.sin(angle)
    return found


def nest(seeds: SeedModels, vectors: list[Vector], crossovers: int) -> tuple[Lineage, Vector]:
    """A lineage after many crossovers, and the same done with whole vectors."""
    rng, gram, size = np.random.default_rng(3), gram_of(seeds), seeds.layout.size
    pool = [(Lineage.of_seed(k, len(vectors), size), vector) for k, vector in enumerate(vectors)]
    for _ in range(crossovers):
        (a, dense_a), (b, dense_b) = (pool[index] for index in rng.choice(len(pool), 2, replace=False))
        split, weight = int(rng.integers(size)), float(rng.random())
        child = crossover(a, b, [Cut(split, weight)], gram)
        before, after = slerp(dense_a, dense_b, weight), slerp(dense_a, dense_b, 1 - weight)
        pool.append((child, np.concatenate([before[:split], after[split:]])))
    return pool[-1]


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt2"])
def test_a_lineage_in_memory_is_the_dense_slerp(kind: str, family_of: Callable[[str], Family]) -> None:
    family = family_of(kind)
    lineage, expected = nest(seeds_of(family), dense(family), 14)
    assert lineage.num_segments > 5
    live = LiveModel(family.base, family.experts, dtype="float32", device="cpu")
    recipe = space_of(family).decode(lineage.genotype())
    live.apply(recipe)
    parameters = dict(live.model.named_parameters())
    flat = torch.cat([parameters[slot.name].reshape(-1) for slot in live.architecture.slots]).double().numpy()
    np.testing.assert_allclose(flat, expected, rtol=1e-5, atol=1e-6)


def test_memory_and_disk_hold_the_same_bits_in_bfloat16(family: Family, tmp_path: Path) -> None:
    """Whatever lies between: the live model is fp32, the file bf16, and boundaries are anywhere."""
    lineage, expected = nest(seeds_of(family), dense(family), 10)
    recipe = space_of(family).decode(lineage.genotype())
    live = LiveModel(family.base, family.experts, dtype="float32", device="cpu")
    live.apply(recipe)
    live.apply(Recipe(family.base))
    live.apply(recipe)
    out = merge_to_disk(recipe, tmp_path / "merged")
    stored = safetensors.torch.load_file(out / "model.safetensors")
    assert "lm_head.weight" not in stored  # tied, and counted once
    layout = space_of(family).layout
    for name, parameter in live.model.named_parameters():
        assert stored[name].dtype == torch.bfloat16
        assert torch.equal(stored[name].float(), parameter)
        start, end = layout.span(name)
        close = torch.from_numpy(expected[start:end]).bfloat16().reshape(parameter.shape).float()
        torch.testing.assert_close(parameter, close, rtol=2**-7, atol=1e-6)
    assert layout.size == sum(p.numel() for p in live.model.parameters())
    assert not (out / "mergekit_config.yml").exists()
    assert parse_recipe((out / "evomerge_recipe.yaml").read_text()).recipe_id == recipe.recipe_id


def test_inner_products_are_those_of_whole_vectors_whatever_the_threads(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seed_models, "CELL", 300)
    monkeypatch.setattr(seed_models, "_CHUNK", 64)
    seeds, rows = seeds_of(family), np.array(dense(family))
    told: list[tuple[int, int]] = []
    one, four = seeds.cells(threads=1), seeds.cells(lambda *done: told.append(done), threads=4)
    assert one.tobytes() == four.tobytes()
    assert told[-1] == (seeds.layout.size,) * 2
    gram = CellGram(seeds.read, seeds.edges, one, seeds.products)
    for start, end in ((0, seeds.layout.size), (17, 1041), (350, 360), (2000, seeds.layout.size)):
        part = rows[:, start:end]
        np.testing.assert_allclose(gram.gram(start, end), part @ part.T, rtol=1e-10, atol=1e-10)


def test_a_recipe_survives_its_yaml_to_the_last_bit(family: Family) -> None:
    seeds, space = seeds_of(family), space_of(family, seeds=["math", "base", "capitals"])
    lineage, _ = nest(seeds, dense(family), 6)
    recipe = space.decode(lineage.genotype())
    back = parse_recipe(format_recipe(recipe))
    assert back == recipe
    assert back.recipe_id == recipe.recipe_id
    assert space.encode(back).tobytes() == lineage.genotype().tobytes()
    seed = space.decode(Lineage.of_seed(1, 3, lineage.size).genotype())
    assert seed.model == family.base
    assert space.encode(seed).tolist() == Lineage.of_seed(1, 3, lineage.size).genotype().tolist()


def test_stretches_of_other_tensors_are_refused(family: Family, family_of: Callable[[str], Family]) -> None:
    lineage, _ = nest(seeds_of(family), dense(family), 3)
    text = format_recipe(space_of(family).decode(lineage.genotype()))
    other = family_of("qwen2")
    for name, source in (*family.experts, ("base", family.base)):
        text = text.replace(source.model, dict((*other.experts, ("base", other.base)))[name].model)
    live = LiveModel(other.base, other.experts, dtype="float32", device="cpu")
    with pytest.raises(UserError, match="stretches were laid over other tensors"):
        live.apply(parse_recipe(text))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("method: linear", "method: ties", "only linear takes coefficients by stretches"),
        ("normalize: false", "coefficient: 0.5", "the stretches hold the coefficients"),
        ("from: [", "from: [3, ", r"parts\[0\].from: expected \[tensor, offset\]"),
        ("math: 0.5", "maths: 0.5", "expected a finite number for each of math, spanish"),
        ("seed: 0", "parity: mergekit", "mergekit has no coefficients by stretches"),
        ("seed: 0", "options: {output: adapter, rank: 4}", "an adapter holds whole tensors"),
    ],
)
def test_stretches_that_make_no_sense_are_refused(old: str, new: str, message: str) -> None:
    text = (
        "method: linear\nexperts: {math: a, spanish: b}\nparameters: {normalize: false}\nseed: 0\nstretches:\n"
        '  layout: "0123456789abcdef"\n  parts:\n    - {from: [embed, 0], value: {math: 0.5, spanish: 0.25}}\n'
    )
    parse_recipe(text)
    assert old in text
    with pytest.raises(InvalidInput, match=message):
        parse_recipe(text.replace(old, new))


def test_seeds_of_other_shapes_or_with_nan_are_refused(family: Family, tmp_path: Path) -> None:
    wide = tiny_model(tiny_config("llama", hidden_size=32), 0, torch.bfloat16)
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(InvalidInput, match="wide"):
        SeedModels(family.base, [], [family.experts[0], ("wide", Source(str(tmp_path / "wide")))])
    broken = fine_tuned(tiny_model(tiny_config("llama"), 0, torch.bfloat16), 1)
    with torch.no_grad():
        broken.model.norm.weight[3] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    seeds = SeedModels(family.base, [], [family.experts[0], ("broken", Source(str(tmp_path / "broken")))])
    with pytest.raises(UserError, match=r"broken: tensor model\.norm\.weight holds NaN"):
        seeds.cells()
