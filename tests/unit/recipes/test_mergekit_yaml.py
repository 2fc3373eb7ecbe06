from __future__ import annotations

import pytest

from evomerge.errors import InvalidInput
from evomerge.recipes.mergekit_writer import llama_tensors
from evomerge.recipes.mergekit_yaml import NotExpressible, format_mergekit, parse_mergekit
from evomerge.recipes.recipe import Merge, Node, Recipe, Rule, Source, Stack, StackPart
from evomerge.recipes.recipe_yaml import parse_recipe
from evomerge.recipes.resolve import resolve_values

TENSORS = llama_tensors(30)


def value(recipe: Recipe, name: str, tensor: str, num_blocks: int = 30) -> object:
    place = next(place for place in llama_tensors(num_blocks) if tensor in place[0])
    assert isinstance(recipe.model, Merge)
    return resolve_values(recipe.model, *place, num_blocks)[name]


def test_models_with_gradients_and_filters() -> None:
    recipe = parse_recipe(
        """
        merge_method: ties
        base_model: org/base
        models:
          - model: org/base
          - model: org/math@v1
            parameters:
              weight: [{filter: mlp, value: [0.0, 1.0]}, {value: 0.5}]
              density: 0.4
          - model: org/spanish+org/lora
        parameters: {weight: 0.25, int8_mask: true}
        dtype: float32
        out_dtype: bfloat16
        """
    )
    merge = recipe.model
    assert isinstance(merge, Merge)
    assert merge.base == Source("org/base")
    assert merge.experts == (("math", Source("org/math", "v1")), ("lora", Source("org/spanish", None, "org/lora")))
    assert recipe.dtype == "bfloat16"
    assert recipe.tokenizer is None
    assert value(recipe, "coefficient", "layers.0.mlp") == (0.0, 0.25)
    assert value(recipe, "coefficient", "layers.29.mlp.up") == (1.0, 0.25)
    assert value(recipe, "coefficient", "self_attn") == (0.5, 0.25)
    assert value(recipe, "coefficient", "lm_head") == (0.5, 0.25)
    assert value(recipe, "density", "layers.3.") == (0.4, 1.0)  # mergekit's default
    assert value(recipe, "normalize", "layers.3.") is True
    assert value(recipe, "lambda", "layers.3.") == 1.0


def test_defaults_of_mergekit_are_spelled_out() -> None:
    recipe = parse_mergekit(
        "merge_method: dare_ties\nbase_model: b\nmodels: [{model: x, parameters: {weight: 1, density: 0.5}}]"
    )
    merge = recipe.model
    assert isinstance(merge, Merge)
    written = dict(merge.parameters)
    assert written["rescale"] == (Rule("l1"),)  # mergekit keeps the L1 norm, the paper divides by the density
    assert written["normalize"] == (Rule(False),)
    assert written["lambda"] == (Rule(1.0),)
    off = parse_mergekit(
        "merge_method: dare_ties\nbase_model: b\nmodels: [{model: x, parameters: {weight: 1}}]\n"
        "parameters: {rescale: false, normalize: true}"
    )
    assert isinstance(off.model, Merge)
    assert dict(off.model.parameters)["rescale"] == (Rule("none"),)
    assert dict(off.model.parameters)["normalize"] == (Rule(True),)


SLICED = """
merge_method: task_arithmetic
base_model: b
slices:
  - sources:
      - {model: x, layer_range: [0, 10], parameters: {weight: [0.0, 0.9]}}
      - {model: b, layer_range: [0, 10]}
  - sources:
      - {model: x, layer_range: [10, 20], parameters: {weight: [{filter: mlp, value: 7}]}}
      - {model: b, layer_range: [10, 20]}
    parameters: {lambda: 0.5}
  - sources:
      - {model: x, layer_range: [20, 30]}
      - {model: b, layer_range: [20, 30]}
    parameters: {weight: [3.0, 4.0]}
parameters: {weight: [1.0, 2.0]}
"""


def test_slices_restart_gradients_and_give_the_ends_to_first_and_last() -> None:
    recipe = parse_mergekit(SLICED)
    assert value(recipe, "coefficient", "layers.0.") == (0.0,)
    assert value(recipe, "coefficient", "layers.9.mlp") == (0.9,)
    assert value(recipe, "coefficient", "layers.10.mlp") == (7.0,)
    assert value(recipe, "coefficient", "layers.10.self_attn") == (1.0,)  # source falls through to the top level
    assert value(recipe, "coefficient", "layers.19.self_attn") == (2.0,)
    assert value(recipe, "coefficient", "layers.20.") == (3.0,)
    assert value(recipe, "coefficient", "layers.29.") == (4.0,)
    assert value(recipe, "coefficient", "embed_tokens") == (0.0,)
    assert value(recipe, "coefficient", "model.norm") == (3.0,)  # the last slice at fraction 0, not 1
    assert value(recipe, "coefficient", "lm_head") == (3.0,)
    assert value(recipe, "lambda", "layers.15.") == 0.5
    assert value(recipe, "lambda", "layers.5.") == 1.0
    assert recipe.options == (("num_blocks", 30),)


def test_a_single_block_slice_takes_the_last_knot() -> None:
    text = "merge_method: linear\nslices:\n" + "".join(
        f"  - sources: [{{model: x, layer_range: [{b}, {b + 1}], parameters: {{weight: [0.25, 0.75]}}}}]\n"
        for b in range(2)
    )
    recipe = parse_mergekit(text)
    assert value(recipe, "coefficient", "layers.0.", 2) == (0.75,)
    assert value(recipe, "coefficient", "embed", 2) == (0.25,)


def test_slerp_starts_at_the_base() -> None:
    recipe = parse_mergekit(
        "merge_method: slerp\nbase_model: y\nmodels: [{model: x}, {model: y}]\n"
        "parameters: {t: [{filter: self_attn, value: [0, 1]}, {value: 0.5}]}"
    )
    merge = recipe.model
    assert isinstance(merge, Merge)
    assert recipe.sources == (Source("y"), Source("x"))
    assert value(recipe, "t", "layers.29.self_attn") == 1.0
    assert value(recipe, "t", "mlp") == 0.5


def test_an_unlisted_base_counts_in_linear_only_with_a_weight() -> None:
    without = parse_mergekit("merge_method: linear\nbase_model: b\nmodels: [{model: x, parameters: {weight: 1}}]")
    assert isinstance(without.model, Merge)
    assert [name for name, _ in without.model.experts] == ["x"]
    assert without.tokenizer == Source("b")
    counted = parse_mergekit("merge_method: linear\nbase_model: b\nmodels: [{model: x}]\nparameters: {weight: 1}")
    assert isinstance(counted.model, Merge)
    assert [name for name, _ in counted.model.experts] == ["x", "b"]


def test_model_references_as_mappings() -> None:
    recipe = parse_mergekit(
        "merge_method: linear\nmodels:\n"
        "  - {model: {model: {path: ./a@b, revision: r}, lora: ./c}, parameters: {weight: 1}}\n"
        "  - {model: org/a, parameters: {weight: 1}}\n  - {model: other/a, parameters: {weight: 1}}"
    )
    assert isinstance(recipe.model, Merge)
    assert recipe.model.experts[0] == ("c", Source("./a@b", "r", "./c"))
    assert [name for name, _ in recipe.model.experts] == ["c", "a", "a_2"]


GOOD = "merge_method: ties\nbase_model: b\nmodels: [{model: x, parameters: {weight: 1}}]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + "paramters: {}", "f.yaml: paramters: unknown key. Did you mean 'parameters'?"),
        (GOOD + "parameters: {densty: 1}", "parameters.densty: ties has no such parameter in mergekit. Did you mean"),
        (
            GOOD + "modules: {text: {}}",
            "models: expected exactly one of models, slices, modules; found models, modules",
        ),
        ("merge_method: linear\nmodules: {a: {modles: []}}", "modules.a.modles: unknown key. Did you mean 'models'?"),
        (GOOD + "tokenizer_source: 3", "tokenizer_source: expected a model"),
        (GOOD + "tokenizer: {source: base, tokens: {a: {force: true}}}", "tokenizer.tokens.a.force: needs a source"),
        (GOOD + "tokenizer: {source: base}\ntokenizer_source: base", "give tokenizer or tokenizer_source, not both"),
        (GOOD + "chat_template: chatlm", "chat_template: expected auto, a name or a Jinja template"),
        (GOOD + "---\n" + GOOD, "name: only one document may be without a name"),
        (
            GOOD.replace("ties", "task_arithmetic") + "parameters: {density: 1}",
            "density: has no effect in task_arithmetic",
        ),
        (GOOD + "parameters: {density: 0}", "density: expected a number above 0, at most 1, got 0"),
        (GOOD + "parameters: {density: 1.5}", "density: expected a number above 0, at most 1, got 1.5"),
        (GOOD + "parameters: {normalize: [true, false]}", "expected true or false"),
        (GOOD + "parameters: {rescale: true}", "rescale: evomerge's ties does not rescale"),
        (GOOD + "parameters: {density: [a, b]}", "expected a finite number or a list of them"),
        (GOOD + "parameters: {normalize: 3e400}", "expected true or false"),
        (GOOD + "dtype: int3", "expected one of bfloat16"),
        (GOOD.replace("ties", "breadcrums"), "cannot be read from mergekit's dialect"),
        (GOOD.replace("base_model: b\n", ""), "base_model: missing; ties needs it"),
        (GOOD.replace("weight: 1", "wieght: 1"), "parameters.wieght: ties has no such parameter"),
        (GOOD.replace("weight: 1", "density: 1"), "missing for x; ties needs it"),
        (GOOD.replace("weight: 1", "weight: 1, normalize: true"), "mergekit ignores it beside a model"),
        (GOOD.replace("{model: x,", "{model: x}, {model: x,"), "x is listed twice"),
        ("merge_method: ties\nbase_model: b", "expected exactly one of models, slices, modules; found none"),
        (
            SLICED.replace("b, layer_range: [10, 20]", "b, layer_range: [9, 20]"),
            "the same number of blocks, got [10, 11]",
        ),
        (SLICED.replace("b, layer_range: [10, 20]", "c, layer_range: [9, 19]"), "the base_model must be one of them"),
        (SLICED.replace("x, layer_range: [20, 30]", "x"), "slices[2].sources[0]: layer_range is missing"),
        (
            SLICED.replace("[10, 20]", "[9, 19]").replace("filter: mlp", "filter: layers.3."),
            "parameters.weight[0].filter: 'layers.3.' speaks of a block's number",
        ),
        (GOOD.replace("model: x", "model: {model: x, override_architecture: A}"), "correct it there"),
        (GOOD.replace("model: x", "model: a@b@c"), "expected path[@revision][+lora[@revision]], got 'a@b@c'"),
        (SLICED.replace("layer_range: [0, 10]}", "layer_range: [0]}"), "expected [start, end)"),
    ],
)
def test_what_is_refused(text: str, expected: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_recipe(text, "f.yaml")
    assert expected in str(caught.value)
    assert "f.yaml" in str(caught.value)


E3 = (("math", Source("org/math")), ("spanish", Source("org/es", "v2")), ("capitals", Source("c", None, "lora")))
B = Source("org/base")
COEFFICIENT = {
    "scalar": (Rule(0.1),),
    "per expert": tuple(Rule(index / 7, expert=name) for index, (name, _) in enumerate(E3)),
    "gradient": (Rule((0.1, 0.7, 0.2), expert="math"), Rule(0.3)),
    "components": (Rule(0.1, component="norms"), Rule(0.2, component="attention", expert="math"), Rule(0.3)),
    "embeddings": (
        Rule(0.9, component="embeddings"),
        Rule(0.8, component="head"),
        Rule(0.3, component="mlp"),
        Rule(0.2),
    ),
    "outside": (Rule(0.9, outside_blocks=True), Rule((0.1, 0.2))),
    "blocks": (Rule(0.1, blocks=(0, 7)), Rule(0.2, blocks=(3, 20), expert="spanish"), Rule(0.3)),
    "mixed": (
        Rule(0.1, blocks=(0, 7), component="mlp"),
        Rule((0.2, 0.9), blocks=(4, 20), expert="spanish"),
        Rule(0.5, contains="q_proj"),
        Rule((0.3, 0.4, 0.1)),
    ),
    "one block": (Rule((0.1, 0.2), blocks=(3, 4)), Rule(0.5)),
}


@pytest.mark.parametrize("case", COEFFICIENT)
@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_what_is_written_reads_back_to_the_same_values(case: str, method: str) -> None:
    merge = Merge(
        method, E3, B, (("coefficient", COEFFICIENT[case]), ("lambda", (Rule(0.7, (0, 5)), Rule(1.0)))), seed=5
    )
    back = parse_mergekit(format_mergekit(Recipe(merge, "bfloat16"), 30))
    assert isinstance(back.model, Merge)
    assert (back.dtype, back.reference, back.model.seed) == ("bfloat16", B, 5)
    assert back.model.experts == merge.experts
    for tensor in TENSORS:
        wanted, found = resolve_values(merge, *tensor, 30), resolve_values(back.model, *tensor, 30)
        assert wanted.keys() == found.keys()
        for name in wanted:
            exact = isinstance(wanted[name], str)
            assert found[name] == (wanted[name] if exact else pytest.approx(wanted[name], rel=1e-12)), (tensor, name)


def test_simple_recipes_need_no_slices() -> None:
    text = format_mergekit(Recipe(Merge("ties", E3, B, (("coefficient", COEFFICIENT["per expert"]),))), 30)
    assert "slices" not in text
    assert "model: org/es@v2" in text
    assert "c+lora" in text


HALF = (("coefficient", (Rule(0.5),)),)


@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        (
            Merge("ties", E3, B, (("coefficient", (Rule(1.0),)), ("merge_func", (Rule("max"),)))),
            "merge_func = mean",
        ),
        (
            Merge("linear", (("a", B), ("m", Stack((StackPart(B, 0, 30),)))), None, (("coefficient", (Rule(1.0),)),)),
            "a stack inside a merge",
        ),
        (Stack((StackPart(Merge("linear", E3, None, HALF), 0, 30),)), "more than a merge of blocks"),
        (
            Stack(
                tuple(
                    StackPart(Merge(method, (("a", Stack((StackPart(B, 0, 2),))),), base, HALF), 0, 2)
                    for method, base in (("linear", None), ("ties", Stack((StackPart(B, 0, 2),))))
                )
            ),
            "one method",
        ),
        (
            Merge("ties", E3, B, (("coefficient", (Rule(0.5, component="regex:q|k"), Rule(1.0))),)),
            "regular expressions",
        ),
        (
            Merge("dare_linear", E3, B, (("coefficient", (Rule(1.0),)), ("rescale", (Rule("inv_density"),)))),
            "mergekit has no rescale: inv_density",
        ),
        (Merge("ties", E3, B, (("coefficient", (Rule(0.5, blocks=(0, 40)), Rule(1.0))),)), "names block 39"),
        (Merge("linear", (("a", B), ("b", B)), None, (("coefficient", (Rule(0.5),)),)), "is listed twice"),
        (B, "not a merge"),
    ],
)
def test_what_mergekit_has_no_words_for(merge: Node, expected: str) -> None:
    with pytest.raises(NotExpressible, match=expected):
        format_mergekit(Recipe(merge), 30)


def test_other_architectures_need_their_tensor_names() -> None:
    tensors = [
        ("transformer.wte.weight", None, "embeddings"),
        *((f"transformer.h.{b}.{name}.weight", b, part) for b in range(4) for name, part in
          [("ln_1", "norms"), ("attn.c_attn", "attention"), ("mlp.c_fc", "mlp")]),
        ("transformer.ln_f.weight", None, "norms"),
    ]  # fmt: skip
    rules = (
        Rule(0.1, component="norms"),
        Rule(0.2, component="attention"),
        Rule(0.3, component="embeddings"),
        Rule(0.4),
    )
    text = format_mergekit(Recipe(Merge("ties", E3, B, (("coefficient", rules),))), 4, tensors)
    assert "filter: ln_" in text
    assert "filter: attn" in text
    assert "transformer.wte.weight" in text


@pytest.mark.parametrize("base", [None, B])
@pytest.mark.parametrize("rules", [(Rule((0.0, 1.0)),), (Rule(0.2, blocks=(0, 3)), Rule(0.7))])
def test_slerp_of_two_experts_or_of_base_and_expert(base: Source | None, rules: tuple[Rule, ...]) -> None:
    merge = Merge("slerp", E3[:2] if base is None else E3[:1], base, (("t", rules),))
    back = parse_mergekit(format_mergekit(Recipe(merge), 30)).model
    assert isinstance(back, Merge)
    assert (back.experts, back.base) == (merge.experts, merge.base)
    for tensor in TENSORS:
        assert resolve_values(back, *tensor, 30) == resolve_values(merge, *tensor, 30)
