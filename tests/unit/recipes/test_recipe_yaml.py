from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import InvalidInput
from evomerge.recipes.recipe import (
    COMPONENTS,
    Merge,
    Node,
    Recipe,
    Rule,
    Source,
    Stack,
    StackPart,
    TokenRow,
    Vocabulary,
)
from evomerge.recipes.recipe_reader import parse_source
from evomerge.recipes.recipe_yaml import format_recipe, load_recipe, parse_recipe
from evomerge.recipes.validate import recipe_problems

NAMES = ("math", "spanish", "no")

texts = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
sources = st.builds(Source, texts, st.none() | texts, st.none() | texts) | st.sampled_from(
    [Source("zoo:x"), Source("a/b", "1e5", "c/d", "main"), Source("./a@b+c")]
)
gradients = st.lists(numbers, min_size=2, max_size=4).map(tuple)
ranges = st.none() | st.tuples(st.integers(0, 5), st.integers(1, 5)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    blocks = draw(ranges)
    return Rule(
        draw(numbers | gradients),
        blocks,
        draw(st.none() | st.sampled_from([*COMPONENTS, "regex:q_proj|k_proj"])),
        draw(st.none() | st.sampled_from(NAMES)),
        draw(st.none() | texts),
        outside_blocks=blocks is None and draw(st.booleans()),
    )


def merges(nodes: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    coefficient = st.tuples(
        st.just("coefficient"),
        st.lists(rules(), max_size=6).map(tuple) | st.just(tuple(Rule(0.5, expert=name) for name in NAMES)),
    ).map(lambda entry: (entry[0], (*entry[1], Rule(0.25))))
    return st.builds(
        lambda experts, base, parameter, normalize, seed: Merge(
            "task_arithmetic", tuple(zip(NAMES, experts)), base, (parameter, ("normalize", (Rule(normalize),))), seed
        ),
        st.lists(nodes, min_size=3, max_size=3),
        nodes,
        coefficient,
        st.booleans(),
        st.integers(0, 2**63 - 1),
    )


def stacks(nodes: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    block_ranges = st.tuples(st.integers(0, 5), st.integers(1, 5))
    parts = st.builds(
        lambda node, pair: StackPart(node, pair[0], pair[0] + pair[1]), nodes.filter(is_no_stack), block_ranges
    )
    return st.lists(parts, min_size=1, max_size=3).map(lambda found: Stack(tuple(found)))


def is_no_stack(node: Node) -> bool:
    return not isinstance(node, Stack)  # its depth is known, so that blocks it does not have are refused


token_rows = (
    st.builds(lambda token, model, force: TokenRow(token, model, force=force), texts, sources, st.booleans())
    | st.builds(lambda token, model, of: TokenRow(token, model, of_token=of), texts, sources, texts)
    | st.builds(lambda token, model, of: TokenRow(token, model, of_id=of), texts, sources, st.integers(0, 9))
    | st.builds(lambda token, force: TokenRow(token, zero=True, force=force), texts, st.booleans())
    | st.builds(TokenRow, texts)
)
vocabularies = st.builds(
    lambda source, rows, multiple, base: Vocabulary(source, tuple(sorted(rows, key=lambda r: r.token)), multiple, base),
    st.sampled_from(["union", "base", Source("union")]) | sources,
    st.lists(token_rows, max_size=3, unique_by=lambda row: row.token),
    st.none() | st.integers(1, 99),
    st.none() | sources,
)
recipes = st.builds(
    Recipe,
    st.recursive(sources, lambda nodes: merges(nodes) | stacks(nodes), max_leaves=5),
    st.none() | st.sampled_from(["bfloat16", "float32"]),
    st.none() | sources,
    st.sampled_from([(), (("num_blocks", 30),)]),
    st.none() | vocabularies,
    st.none() | st.sampled_from(["auto", "chatml", "{{ messages[0]['content'] }}\n: # no comment"]),
)


@settings(max_examples=60, deadline=None)
@given(recipes)
def test_every_recipe_survives_its_file(recipe: Recipe) -> None:
    back = parse_recipe(format_recipe(recipe))
    assert back == recipe
    assert back.recipe_id == recipe.recipe_id


def test_the_documented_form() -> None:
    recipe = parse_recipe(
        """
        method: ties
        base: zoo:smollm2-135m
        experts:
          math: org/model@revision
          spanish: {model: ./local, adapter: ./lora}
          both: {method: linear, experts: {a: x/a+x/lora, b: x/b}, parameters: {coefficient: {a: 0.5, b: 0.5}}}
        parameters:
          lambda: 1.0
          density: {math: 0.4, spanish: 0.6, both: 1.0}
          coefficient:
            - {blocks: [0, 9], component: attention, value: {math: 0.5, spanish: 0.2}}
            - {blocks: 10, expert: math, value: 0.1}
            - {expert: math, value: [0.1, 0.9]}
            - {outside_blocks: true, value: 0.3}
            - {value: 0.4}
        seed: 7
        dtype: bfloat16
        tokenizer: zoo:smollm2-135m
        """
    )
    merge = recipe.model
    assert isinstance(merge, Merge)
    assert merge.rules("coefficient") == (
        Rule(0.5, (0, 10), "attention", "math"),
        Rule(0.2, (0, 10), "attention", "spanish"),
        Rule(0.1, (10, 11), expert="math"),
        Rule((0.1, 0.9), expert="math"),
        Rule(0.3, outside_blocks=True),
        Rule(0.4),
    )
    assert merge.rules("density")[1] == Rule(0.6, expert="spanish")
    assert merge.experts[0][1] == Source("org/model", "revision")
    assert merge.experts[1][1] == Source("./local", None, "./lora")
    assert isinstance(merge.experts[2][1], Merge)
    assert (recipe.dtype, recipe.tokenizer, merge.seed) == ("bfloat16", Source("zoo:smollm2-135m"), 7)
    assert recipe.sources[0] == Source("zoo:smollm2-135m")


def test_the_order_of_parameters_does_not_matter() -> None:
    head = "method: ties\nbase: b\nexperts: {x: a, y: c}\nparameters:\n"
    one = parse_recipe(head + "  coefficient: 1.0\n  density: 0.5\n")
    other = parse_recipe(head + "  density: 0.5\n  coefficient: 1\n")
    assert one == other
    assert one.recipe_id == other.recipe_id


def test_sources_as_text() -> None:
    assert parse_source("a/b@rev+c/d@r2") == Source("a/b", "rev", "c/d", "r2")
    assert parse_source("zoo:base") == Source("zoo:base")


HEAD = "method: ties\nbase: b\nexperts: {math: a, spanish: c}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD + "parameters: {coefficient: 1}\nsede: 3", "f.yaml: sede: unknown key. Did you mean 'seed'?"),
        (
            HEAD + "parameters: {coeficient: 1, coefficient: 1}",
            "parameters.coeficient: ties has no such parameter. Did",
        ),
        ("method: tise\nbase: b\nexperts: {x: a}", "f.yaml: method: "),
        ("method: slerp\nexperts: {x: a, y: b}", "parameters.t: missing; slerp needs it"),
        ("method: slerp\nbase: c\nexperts: {x: a, y: b}\nparameters: {t: 1}", "slerp merges two models"),
        ("method: slerp\nexperts: {x: a}\nparameters: {t: 1}", "slerp merges two models"),
        (HEAD + "parameters: {density: 0}", "parameters.density: expected a number above 0, at most 1, got 0"),
        (
            HEAD + "parameters: {density: [0.5, 1.5]}",
            "parameters.density: expected a number above 0, at most 1, got 1.5",
        ),
        (HEAD + "parameters: {coefficient: {math: 1, spansh: 2}}", "no expert 'spansh'. Did you mean 'spanish'?"),
        (HEAD + "parameters: {coefficient: .nan}", "parameters.coefficient: expected a finite number"),
        (HEAD + "parameters: {coefficient: [1.0]}", "gradient of two or more"),
        (HEAD + "parameters: {coefficient: 1, normalize: 2}", "parameters.normalize: expected true or false, got 2"),
        (HEAD + "parameters: {coefficient: 1, normalize: {math: true}}", "one value for all experts"),
        (HEAD + "parameters: {coefficient: [{value: 1, component: atention}]}", "Did you mean 'attention'?"),
        (HEAD + "parameters: {coefficient: [{value: 1, component: 'regex:('}]}", "not a regular expression"),
        (
            HEAD + "parameters: {coefficient: [{value: 1, blocks: [9, 2]}]}",
            "coefficient[0].blocks: expected [first, last]",
        ),
        (HEAD + "parameters: {coefficient: [{vlaue: 1}]}", "coefficient[0].vlaue: unknown key. Did you mean 'value'?"),
        (HEAD + "parameters: {coefficient: 1}\ndtype: int8", "dtype: expected one of bfloat16"),
        (HEAD + "parameters: {coefficient: 1}\noptions: {x: 1}", "options.x: unknown option"),
        ("method: ties\nexperts: {x: a}\nparameters: {coefficient: 1}", "base: missing; ties needs the base model"),
        ("method: ties\nbase: b\nexperts: [a]\nparameters: {coefficient: 1}", "experts: expected a mapping of names"),
        (
            "method: ties\nbase: b\nexperts: {x: {model: 3}}\nparameters: {coefficient: 1}",
            "experts.x.model: expected text",
        ),
        ("experts: {x: a}", "method: missing; it is required"),
        ("model: {modle: a}", "model.modle: unknown key"),
        (HEAD + "parameters: {coefficient: 1}\nseed: -3", "seed: expected a whole number from 0"),
    ],
)
def test_what_is_refused(text: str, expected: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_recipe(text, "f.yaml")
    assert expected in str(caught.value)
    assert all(problem.where.startswith("f.yaml") for problem in caught.value.problems)


def test_a_stack_in_our_own_form() -> None:
    recipe = parse_recipe(
        """
        stack:
          - {from: zoo:a, blocks: [0, 23]}
          - blocks: 8
            from: {method: linear, experts: {x: zoo:b, y: {stack: [{from: zoo:c, blocks: [1, 9]}]}},
                   parameters: {coefficient: 1}}
        """
    )
    assert isinstance(recipe.model, Stack)
    first, second = recipe.model.parts
    assert first == StackPart(Source("zoo:a"), 0, 24)
    assert (second.start, second.end, recipe.model.num_blocks) == (8, 9, 25)
    assert isinstance(second.node, Merge)
    assert second.node.experts[1][1] == Stack((StackPart(Source("zoo:c"), 1, 10),))
    assert recipe.sources == (Source("zoo:a"), Source("zoo:b"), Source("zoo:c"))


def test_ids_of_recipes_without_a_stack_are_as_ever() -> None:
    merge = parse_recipe(
        "method: ties\nbase: b\nexperts: {x: a, y: c}\nparameters: {coefficient: [0.5, 1.0]}\nseed: 3\n"
    )
    assert merge.recipe_id == "403e6eb0e3aa7e69"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stack: []", "f.yaml: stack: expected a list of {from: model, blocks: [first, last]}, got []"),
        ("stack: [{from: a}]", "stack[0].blocks: missing; it is required"),
        ("stack: [{from: a, blocks: [3, 2]}]", "stack[0].blocks: expected [first, last] (both included)"),
        ("stack: [{from: a, block: [3, 4]}]", "stack[0].block: unknown key. Did you mean 'blocks'?"),
        ("stack: [{from: {method: linear}, blocks: 1}]", "stack[0].from.experts: expected a mapping"),
        (
            "stack: [{from: {stack: [{from: a, blocks: [0, 1]}]}, blocks: [1, 2]}]",
            "stack[0].blocks: names block 2, the stack has 2",
        ),
        ("stack: [{from: a, blocks: 0}]\nexperts: {x: a}", "experts: unknown key"),
    ],
)
def test_what_is_refused_of_a_stack(text: str, expected: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_recipe(text, "f.yaml")
    assert expected in str(caught.value)


PLAIN = "method: linear\nexperts: {x: a, y: c}\nparameters: {coefficient: 1}\n"


def test_a_vocabulary_in_our_own_form() -> None:
    assert parse_recipe(PLAIN + "tokenizer: union").vocabulary == Vocabulary("union")
    named = parse_recipe(PLAIN + "tokenizer: {model: union}")
    assert (named.tokenizer, named.vocabulary) == (Source("union"), None)
    recipe = parse_recipe(
        PLAIN
        + """\
tokenizer:
  source: org/x
  base: c
  reference: a
  pad_to_multiple_of: 8
  tokens:
    "<a>": {source: {kind: zero}, force: true}
    "<b>": {source: {kind: model_token, model: org/y, token: "</s>"}}
    "<c>": {source: c}
chat_template: chatml
parity: mergekit
compute_dtype: bfloat16
"""
    )
    rows = (
        TokenRow("<a>", zero=True, force=True),
        TokenRow("<b>", Source("org/y"), "</s>"),
        TokenRow("<c>", Source("c")),
    )
    assert recipe.vocabulary == Vocabulary(Source("org/x"), rows, 8, Source("c"))
    assert (recipe.tokenizer, recipe.chat_template) == (Source("a"), "chatml")
    assert (recipe.parity, recipe.compute_dtype) == ("mergekit", "bfloat16")
    assert Source("org/y") in recipe.sources
    assert parse_recipe(format_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tokenizer: {sauce: union}", "tokenizer.sauce: unknown key. Did you mean 'source'?"),
        ("tokenizer: {source: union, tokens: [a]}", "tokenizer.tokens: expected a mapping of tokens"),
        (
            "tokenizer: {source: union, tokens: {t: {source: {kind: one}}}}",
            "t.source.kind: expected zero or model_token",
        ),
        ("tokenizer: {source: union, tokens: {t: {force: true}}}", "tokens.t.force: needs a source"),
        (
            "tokenizer: {source: union, tokens: {t: {source: {kind: model_token, model: a}}}}",
            "tokens.t.source: expected either token or token_id",
        ),
        ("tokenizer: {source: union, pad_to_multiple_of: 0}", "pad_to_multiple_of: expected a whole number"),
        (
            "chat_template: chatlm",
            "chat_template: expected auto, a name or a Jinja template, got 'chatlm'. Did you mean",
        ),
        ("parity: mergekitt", "parity: expected mergekit, got 'mergekitt'"),
        ("compute_dtype: float16", "compute_dtype: only counts with parity: mergekit"),
    ],
)
def test_what_is_refused_of_the_rest(text: str, expected: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_recipe(PLAIN + text, "f.yaml")
    assert expected in str(caught.value)


def test_all_problems_at_once() -> None:
    text = "method: ties\nexperts: {x: 3}\nparameters: {coefficient: [{value: a, block: 1}], densty: 1}\nsede: 1"
    with pytest.raises(InvalidInput) as caught:
        parse_recipe(text, "f.yaml")
    keys = [problem.where for problem in caught.value.problems]
    for key in ("experts.x", "parameters.coefficient[0].block", "parameters.densty", "sede", "base"):
        assert f"f.yaml: {key}" in keys


def test_load_recipe_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("")
    with pytest.raises(InvalidInput, match="empty") as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_problems_of_recipes_built_in_code() -> None:
    merge = Merge("linear", (("a", Source("x")), ("a", Source("y"))), parameters=(("coefficient", (Rule(0.5),)),))
    assert "same name" in str(recipe_problems(Recipe(merge))[0])
    good = replace(merge, experts=(("a", Source("x")), ("b", Source("y"))))
    assert not recipe_problems(Recipe(good))
    assert recipe_problems(Recipe(replace(good, parameters=(("coefficient", (Rule(math.inf),)),))))
    assert recipe_problems(Recipe(replace(good, parameters=(("coefficient", ()),))))
