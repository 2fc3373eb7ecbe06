"""Mutated recipes of both dialects: every one is read, or refused with problems; never a traceback, never slowly."""

from __future__ import annotations

import contextlib
import math
import random
import resource
import time
from typing import Any

import pytest
import yaml

from evomerge.errors import UserError
from evomerge.recipes.mergekit_yaml import NotExpressible, format_mergekit
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.recipe_yaml import format_recipe, parse_recipe

SEEDS = range(500)
SECONDS, BYTES = 4.0, 100_000_000

OWN = """
method: ties
base: ./base
experts:
  math: {model: ./math, revision: main}
  code: ./code@v1+./adapter
  text: {model: ./text, into: language_model}
  both: {method: linear, experts: {a: ./a, b: ./b}, parameters: {coefficient: [0.1, 0.9]}}
parameters:
  lambda: 1.0
  density: {math: 0.4, code: 0.6, text: 1, both: 0.3}
  coefficient:
    - {blocks: [0, 9], component: attention, value: {math: 0.5, code: 0.2, text: 0, both: 1}}
    - {blocks: 10, expert: math, value: 0.1}
    - {component: "regex:mlp.*proj", value: 0.3}
    - {outside_blocks: true, value: 0.3}
    - {value: [0.1, 0.4, 0.2]}
seed: 7
dtype: bfloat16
tokenizer: ./base
"""
MERGEKIT = """
merge_method: dare_ties
base_model: org/base@main
models:
  - model: org/one@v1+org/lora
    parameters: {weight: [{filter: self_attn, value: [0.1, 0.9]}, {value: 0.5}], density: 0.5}
  - model: {model: {path: org/two, revision: x}, lora: org/adapter}
    parameters: {weight: 0.5, density: [0.2, 0.8]}
parameters: {normalize: true, int8_mask: false, lambda: 0.7}
dtype: float32
out_dtype: bfloat16
tokenizer_source: base
"""
SLICES = """
merge_method: slerp
base_model: org/one
slices:
  - sources:
      - {model: org/one, layer_range: [0, 32]}
      - {model: org/two, layer_range: [0, 32]}
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {value: 0.5}
dtype: bfloat16
"""
WORDS = (
    "", " ", "x", "../../etc/passwd", "/", "~", "~nobody/x", "\x00", "a" * 3000, "ties", "linear", "regex:(",
    "*", "&a", "!!python/object/apply:os.system [id]", "{{", "nan", ".inf", "1e999", "0x" + "f" * 300, "\u202e", "💥",
    "language_model", "model@@@+++", "zoo:../x", "null", "true", "float16", "<<",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 10**400, -(10**30), 2**63, 1e308, -0.0, math.inf, math.nan, [], {}, [[]], [None],
    {"": ""}, [1, "x"], [0.5], list(range(600)), {"model": 3}, {"method": "linear"}, [0, 10**12], [5, 2], [-1, 3],
    {"value": {}},
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def changed(tree: Any, draw: random.Random) -> Any:
    """The tree with one thing replaced, removed, renamed, repeated, nested or moved."""
    path = draw.choice([place for place in places(tree) if place])
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    key, kind = path[-1], draw.choice(("value", "word", "remove", "rename", "nest", "copy", "add"))
    if kind == "value":
        parent[key] = draw.choice(VALUES)
    elif kind == "word":
        parent[key] = draw.choice(WORDS)
    elif kind == "remove":
        del parent[key]
    elif kind == "nest":
        for _ in range(draw.choice((1, 3, 25, 60))):
            parent[key] = draw.choice(({"method": "linear", "experts": {"a": parent[key]}}, [parent[key]]))
    elif kind == "copy":
        other = draw.choice([place for place in places(tree) if place])
        found = tree
        for step in other:
            found = found[step]
        parent[key] = yaml.safe_load(yaml.safe_dump(found))
    elif isinstance(parent, dict):
        parent[draw.choice(WORDS)] = parent.pop(key) if kind == "rename" else draw.choice(VALUES)
    else:
        parent.insert(0, draw.choice(VALUES))
    return tree


def scribbled(text: str, draw: random.Random) -> str:
    """The text with characters replaced, removed or repeated."""
    for _ in range(draw.randint(1, 8)):
        at, size = draw.randrange(len(text)), draw.choice((1, 1, 3, 40))
        piece = draw.choice(
            ("", text[at : at + size] * 3, "\t", "\n", "-", ":", "{", "[", "'", "&a ", "*a", "\x07", "---\n")
        )
        text = text[:at] + piece + text[at + size :]
    return text


def mutated(seed: int) -> str:
    draw = random.Random(seed)
    text = draw.choice((OWN, MERGEKIT, SLICES))
    if draw.random() < 0.3:
        return scribbled(text, draw)
    tree = yaml.safe_load(text)
    for _ in range(draw.choice((1, 1, 2, 5))):
        tree = changed(tree, draw)
    return yaml.safe_dump(tree, allow_unicode=True, sort_keys=draw.random() < 0.5)


def read(text: str) -> Recipe | None:
    """The recipe, None when it was refused; a recipe that was read is written and read again."""
    recipe, told = attempt(text)
    if recipe is None:
        assert told.strip()
        assert len(told) < 50_000
        return None
    assert parse_recipe(format_recipe(recipe)).recipe_id == recipe.recipe_id
    with contextlib.suppress(NotExpressible, UserError):
        assert parse_recipe(format_mergekit(recipe, 32)) is not None
    return recipe


def attempt(text: str) -> tuple[Recipe | None, str]:
    try:
        return parse_recipe(text, "fuzz.yaml"), ""
    except UserError as error:
        return None, str(error)


def test_unchanged_recipes_are_read() -> None:
    assert all(read(text) is not None for text in (OWN, MERGEKIT, SLICES))


@pytest.mark.parametrize("part", range(10))
def test_mutated_recipes(part: int) -> None:
    seeds = [seed for seed in SEEDS if seed % 10 == part]
    results = []
    for seed in seeds:
        text = mutated(seed)
        began = time.perf_counter()
        try:
            results.append(read(text))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{text[:2000]}") from error
        assert time.perf_counter() - began < SECONDS, f"seed {seed}"
    assert len(results) == 50
    assert None in results
    assert any(result is not None for result in results)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefghij", "bcdefghijk")
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join(['*' + before] * 9)}]}}\n" for before, name in zip("abcdefghij", "bcdefghijk")
)
HOSTILE = {
    "alias bomb": BOMB,
    "alias bomb as a value": BOMB + "method: ties\nexperts: {m: ./m}\nbase: ./b\nparameters: {coefficient: *k}\n",
    "alias bomb as a model": BOMB + "method: ties\nexperts: {m: *k}\nbase: ./b\n",
    "alias bomb in the other dialect": BOMB + "merge_method: ties\nmodels: *k\nbase_model: x\n",
    "merge bomb": MERGE_BOMB + "method: ties\n",
    "cycle": "method: linear\nexperts: &e {a: *e}\n",
    "deep list": "method: " + "[" * 1_000_000,
    "deep mapping": "a: " * 5000 + "b",
    "deep lines": "- " * 100_000,
    "deep flow": "method: " + "{a: " * 20_000,
    "shared recipe": "x: &x {method: linear, experts: {a: ./a}}\nmethod: linear\nexperts: {a: *x}\n",
    "many keys": "".join(f"k{number}: 1\n" for number in range(4000)),
    "many experts": "method: linear\nexperts:\n" + "".join(f"  e{number}: ./m\n" for number in range(3000)),
    "many rules": "method: linear\nexperts: {a: ./a}\nparameters:\n  coefficient:\n" + "    - {value: 1}\n" * 3000,
    "long word": "method: " + "x" * 1_000_000,
    "long number": "seed: " + "9" * 100_000,
    "python tag": "method: !!python/object/apply:os.system ['true']\n",
    "nul": "method: \x00",
    "documents": "method: a\n---\nmethod: b\n",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str) -> None:
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, told = attempt(HOSTILE[name])
    assert time.perf_counter() - began < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
    assert len(told) < 50_000
