"""mergekit files whose slices move blocks, whose modules differ, or which hold several documents."""

from __future__ import annotations

import pytest

from evomerge.errors import InvalidInput
from evomerge.recipes.mergekit_yaml import format_mergekit, parse_mergekit
from evomerge.recipes.recipe import Merge, Modules, Recipe, Rule, Source, Stack, StackPart, TokenRow, Vocabulary
from evomerge.recipes.recipe_yaml import format_recipe, parse_recipe
from evomerge.recipes.resolve import resolve_values


def parts(text: str) -> tuple[StackPart, ...]:
    recipe = parse_mergekit(text, "f.yaml")
    assert isinstance(recipe.model, Stack)
    assert parse_recipe(format_recipe(recipe)) == recipe
    return recipe.model.parts


def merge_of(part: StackPart) -> Merge:
    assert isinstance(part.node, Merge)
    return part.node


def test_depth_up_scaling_copies() -> None:
    text = """
        merge_method: passthrough
        base_model: zoo:a
        slices:
          - sources: [{model: zoo:a, layer_range: [0, 24]}]
          - sources: [{model: zoo:a, layer_range: [8, 32]}]
        dtype: bfloat16
    """
    assert parts(text) == (StackPart(Source("zoo:a"), 0, 24), StackPart(Source("zoo:a"), 8, 32))


def test_a_scaled_slice_is_a_merge() -> None:
    text = """
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 4]}]
          - sources:
            - model: b
              layer_range: [2, 4]
              parameters: {scale: [{filter: o_proj, value: 0.0}, {filter: down_proj, value: 0.0}, {value: 1.0}]}
    """
    first, second = parts(text)
    assert first == StackPart(Source("a"), 0, 4)
    merge = merge_of(second)
    assert (second.start, second.end, merge.method) == (0, 2, "passthrough")
    assert merge.experts == (("b", Stack((StackPart(Source("b"), 2, 4),))),)
    assert merge.rules("scale")[0] == Rule(0.0, contains="o_proj")


MIXED = """
merge_method: ties
base_model: root
slices:
  - sources:
      - {model: x, layer_range: [0, 2], parameters: {weight: [0.0, 1.0]}}
      - {model: root, layer_range: [0, 2]}
  - sources:
      - {model: y, layer_range: [1, 4]}
      - {model: other, layer_range: [2, 5]}
    base_model: other
    parameters: {density: 0.25}
  - sources: [{model: root, layer_range: [0, 1]}]
parameters: {weight: [3.0, 5.0], density: 0.5}
"""


def test_every_slice_has_its_own_depth_base_and_gradients() -> None:
    first, second, third = parts(MIXED)
    assert merge_of(first).base == Stack((StackPart(Source("root"), 0, 2),))
    assert merge_of(second).base == Stack((StackPart(Source("other"), 2, 5),))
    assert [part.end for part in (first, second)] == [2, 3]
    assert third == StackPart(Source("root"), 0, 1)  # no expert: mergekit keeps the base

    def values(part: StackPart, block: int | None) -> tuple[object, object]:
        found = resolve_values(merge_of(part), "x", block, "mlp", part.end)
        return found["coefficient"], found["density"]

    assert [values(first, block) for block in (0, 1, None)] == [((0.0,), (0.5,)), ((1.0,), (0.5,)), ((0.0,), (0.5,))]
    assert [values(second, block)[0] for block in (0, 1, 2)] == [(3.0,), (4.0,), (5.0,)]
    assert values(second, None) == ((3.0,), (0.25,))


def test_slices_of_different_models_become_a_stack() -> None:
    text = "merge_method: linear\nslices:\n" + "".join(
        f"  - sources: [{{model: a, layer_range: [{b}, {b + 2}], parameters: {{weight: 1}}}}, "
        f"{{model: {name}, layer_range: [{b}, {b + 2}], parameters: {{weight: 2}}}}]\n"
        for b, name in ((0, "x"), (2, "y"))
    )
    first, second = parts(text)
    assert [name for name, _ in merge_of(first).experts] == ["a", "x"]
    assert [name for name, _ in merge_of(second).experts] == ["a", "y"]


def test_modules_have_parameters_between_slice_and_top() -> None:
    recipe = parse_mergekit(
        """
        merge_method: linear
        base_model: a
        modules:
          text_decoder:
            models: [{model: a}, {model: b, parameters: {weight: 7}}]
            parameters: {weight: 3}
          vision_tower:
            models: [{model: a}]
        parameters: {weight: 2}
        """
    )
    assert isinstance(recipe.model, Modules)
    (text, decoder), (vision, tower) = recipe.model.parts
    assert (text, vision) == ("text_decoder", "vision_tower")
    assert isinstance(decoder, Merge)
    assert isinstance(tower, Merge)
    assert resolve_values(decoder, "x", 0, "mlp", 2)["coefficient"] == (3.0, 7.0)
    assert resolve_values(tower, "x", None, "other", 2)["coefficient"] == (2.0,)
    assert parse_recipe(format_recipe(recipe)) == recipe


DOCUMENTS = """
name: inner
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 3}}]
---
merge_method: slerp
base_model: c
models: [{model: inner}, {model: c}]
parameters: {t: 0.25}
tokenizer_source: union
chat_template: auto
"""


def test_documents_become_a_merge_of_merges() -> None:
    recipe = parse_recipe(DOCUMENTS)
    merge = recipe.model
    assert isinstance(merge, Merge)
    ((name, inner),) = merge.experts
    assert (name, merge.base) == ("inner", Source("c"))
    assert isinstance(inner, Merge)
    assert [str(source) for _, source in inner.experts] == ["a", "b"]
    assert (recipe.vocabulary, recipe.chat_template) == (Vocabulary("union"), "auto")
    named_last = DOCUMENTS.replace("---\n", "---\nname: outer\n")
    assert parse_recipe(named_last).recipe_id == recipe.recipe_id


CIRCLE = "---\nname: inner2\nmerge_method: linear\nmodels: [{model: inner, parameters: {weight: 1}}]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DOCUMENTS.replace("name: inner", "name: inner\nchat_template: auto"), "inner: chat_template: only counts in"),
        (DOCUMENTS.replace("model: inner", "model: inner+lora"), "is a document of this file and takes no revision"),
        (DOCUMENTS.replace("{model: a,", "{model: inner2,") + CIRCLE, "inner, inner2, inner need each other in a"),
        (DOCUMENTS.replace("weight: 3", "wieght: 3"), "f.yaml: inner: models[1].parameters.wieght"),
        (DOCUMENTS + "---\nname: inner\nmerge_method: linear", "a name of its own for every document, got 'inner'"),
        ("method: linear\n---\nmethod: linear", "several YAML documents (---) in one file; expected one"),
    ],
)  # fmt: skip
def test_what_is_refused_of_documents(text: str, expected: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_recipe(text, "f.yaml")
    assert expected in str(caught.value)


LINEAR = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"


def vocabulary(text: str, head: str = LINEAR) -> Vocabulary | None:
    return parse_mergekit(head + text).vocabulary


def test_tokenizers() -> None:
    assert vocabulary("") is None
    assert vocabulary("tokenizer_source: base") == Vocabulary("base")
    assert vocabulary("tokenizer_source: org/x@v") == Vocabulary(Source("org/x", "v"))
    assert vocabulary("base_model: b\ntokenizer_source: union") == Vocabulary("union", base=Source("b"))
    ties = "merge_method: ties\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1}}]\n"
    assert vocabulary("tokenizer_source: union", ties) == Vocabulary("union")  # the merge's base is known
    rows = (
        TokenRow("<a>", zero=True),
        TokenRow("<b>", Source("a"), of_id=3, force=True),
        TokenRow("<c>", Source("b"), of_token="x"),
        TokenRow("<d>", Source("b")),
    )
    text = """
tokenizer:
  tokens:
    "<d>": {source: b}
    "<a>": {source: {kind: zero}}
    "<b>": {source: {kind: model_token, model: a, token_id: 3}, force: true}
    "<c>": {source: {kind: model_token, model: b, token: x}}
  pad_to_multiple_of: 4
"""
    assert vocabulary(text) == Vocabulary("union", rows, 4)


def test_words_and_single_filters_that_mergekit_takes() -> None:
    recipe = parse_mergekit(
        "merge_method: ties\nbase_model: b\nmodels: [{model: a, parameters: {weight: {filter: mlp, value: 2}}}]\n"
        "parameters: {normalize: yes, weight: 1, rescale: false}"
    )
    assert isinstance(recipe.model, Merge)
    assert resolve_values(recipe.model, "x.mlp", 0, "mlp", 2)["coefficient"] == (2.0,)
    assert resolve_values(recipe.model, "x", 0, "attention", 2)["coefficient"] == (1.0,)
    assert recipe.model.rules("normalize") == (Rule(True),)


def test_parity_is_an_extension() -> None:
    recipe = parse_mergekit(LINEAR + "dtype: bfloat16\nout_dtype: float32\nevomerge: {parity: mergekit}")
    assert (recipe.parity, recipe.compute_dtype, recipe.dtype) == ("mergekit", "bfloat16", "float32")
    plain: Recipe = parse_mergekit(LINEAR + "dtype: bfloat16\nout_dtype: float32")
    assert (plain.parity, plain.compute_dtype, plain.dtype) == (None, None, "float32")


def assert_written_reads_back(recipe: Recipe, num_blocks: int) -> str:
    text = format_mergekit(recipe, num_blocks)  # compares all values itself
    again = parse_mergekit(text)
    assert again.sources == recipe.sources
    assert format_mergekit(again, num_blocks) == text
    return text


PASSED = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, 3], parameters: {scale: [{filter: mlp, value: 0}, {value: 1}]}}]
"""
TURNED = """
merge_method: slerp
base_model: a
slices:
  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]
parameters: {t: [0.1, 0.9]}
"""
INNERMOST = """
name: other
merge_method: linear
models: [{model: z, parameters: {weight: [{filter: mlp, value: 1}, {value: [2, 3]}]}}]
"""


@pytest.mark.parametrize(
    ("text", "num_blocks"),
    [
        (MIXED, 6),
        (DOCUMENTS, 4),
        (DOCUMENTS.replace("model: a,", "model: other,") + "---" + INNERMOST, 4),
        (PASSED, 4),
        (TURNED, 2),
        (LINEAR + "base_model: b\ntokenizer: {source: union, pad_to_multiple_of: 8}\nchat_template: chatml\n", 2),
        (LINEAR + "tokenizer_source: base\ndtype: bfloat16\nevomerge: {parity: mergekit}\n", 2),
    ],
)
def test_what_is_read_can_be_written(text: str, num_blocks: int) -> None:
    recipe = parse_mergekit(text)
    written = assert_written_reads_back(recipe, num_blocks)
    assert ("slices:" in written) == isinstance(recipe.model, Stack)


CUT = """
merge_method: task_arithmetic
base_model: a
slices:
  - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]
  - sources: [{model: a, layer_range: [1, 2]}, {model: b, layer_range: [1, 2]}]
parameters: {weight: 0.5}
"""


def test_fewer_blocks_stay_fewer() -> None:
    recipe = parse_mergekit(CUT)
    assert recipe.options == (("num_blocks", 2),)
    text = assert_written_reads_back(recipe, 2)
    assert "layer_range: [1, 2]" in text
    one = parse_mergekit(CUT[: CUT.index("  - sources: [{model: a, layer_range: [1")] + "parameters: {weight: 0.5}")
    assert "layer_range: [0, 1]" in assert_written_reads_back(one, 1)
    outer = parse_mergekit("name: inner" + CUT + "---\n" + DOCUMENTS.split("---\n")[1])
    assert isinstance(outer.model, Merge)
    ((_, inner),) = outer.model.experts
    assert inner == Stack((StackPart(recipe.model, 0, 2),))


def test_a_merge_of_merges_names_its_documents() -> None:
    text = assert_written_reads_back(parse_mergekit(DOCUMENTS), 4)
    assert text.startswith("name: inner\nmerge_method: linear\n")
    assert "{model: inner}" in text
