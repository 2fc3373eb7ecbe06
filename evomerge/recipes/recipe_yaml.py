"""Recipes as YAML files, in evomerge's own form and in mergekit's.

The own form::

    method: ties                       # a registered merge method
    base: zoo:smollm2-135m             # the common ancestor, where the method needs one
    experts:                           # name: source
      math: org/model@revision         # model[@revision][+adapter[@revision]]
      spanish: {model: ./local, adapter: ./lora}
      text: {model: ./text, into: language_model}           # a part of the others, here of a vision-language model
      both: {method: linear, experts: {a: ..., b: ...}}     # a merge of its own
    parameters:
      lambda: 1.0                      # one value for everything
      density: {math: 0.4, spanish: 0.6, both: 1.0}         # one for each expert
      coefficient:                     # rules; the first that matches wins
        - {blocks: [0, 9], component: attention, value: {math: 0.5, spanish: 0.2}}
        - {blocks: 10, expert: math, value: 0.1}
        - {expert: math, value: [0.1, 0.9]}                 # a gradient over the blocks
        - {outside_blocks: true, value: 0.3}
        - {value: 0.4}
    before:                            # on each expert first
      - {method: tswitch, parameters: {drop: 0.6}}
    after:                             # on the merged model
      - {method: lines, parameters: {alpha: 0.5, beta: 0.5}}
    seed: 7                            # of random masks
    dtype: bfloat16                    # of the merged weights; the base's own when left out
    tokenizer: zoo:smollm2-135m        # whose tokenizer and config; the base's when left out
    options: {output: adapter, rank: 16}                    # write a LoRA adapter instead of a model
    chat_template: chatml              # auto, alpaca, chatml, exaone, llama3, mistral, or Jinja

Models with different vocabularies need ``tokenizer: union`` (the tokens of all of them), ``tokenizer: base`` (those of
the base), or a mapping::

    tokenizer:
      source: union                    # or base, or a model
      tokens:                          # rows of single tokens in models that lack them; force: in all models
        "<tool>": {source: org/model, force: true}
        "<a>": {source: {kind: model_token, model: org/model, token: "<b>"}}
        "<pad>": {source: {kind: zero}}
      pad_to_multiple_of: 64           # rows of the embeddings
      base: org/model                  # whose rows the others borrow first; the base of the merge when left out
      reference: org/model             # whose configuration is used; the base's when left out

``parity: mergekit`` computes as mergekit does, in ``compute_dtype``; docs/mergekit.md has the differences.

``blocks`` is ``[first, last]``, both included, or one block. Further keys of a rule: ``component`` (attention, mlp,
norms, embeddings, head, other, or ``regex:pattern``), ``expert``, ``contains`` (part of a tensor name),
``outside_blocks``. A list of two or more numbers is a gradient: values at equally spaced places of the rule's blocks,
linear between them; tensors outside the blocks take its first number. ``before`` and ``after`` are short for merges
of merges (see modifiers.py), and ``preset: balanced_actor`` for a whole recipe (see recipe_presets.py).
``fingerprints``, in the recipe beside merged weights, records their sources and changes nothing. A file may also be
just ``model: <source>``, or a stack of blocks, which may stand wherever a merge may::

    stack:                             # blocks of models one after the other, both ends included
      - {from: zoo:smollm2-135m, blocks: [0, 19]}
      - {from: {method: linear, experts: {...}}, blocks: [10, 29]}

or modules of a model, each made in its own way::

    modules: {text_decoder: {method: ...}, vision_tower: zoo:a, multi_modal_projector: zoo:a}

or a ``linear`` merge whose coefficients change at any parameter, as searches over lineages give (``layout`` is a check
of the tensors' names, sizes and order; each part reaches to the next)::

    method: linear
    experts: {math: zoo:math-en, spanish: zoo:spanish}
    parameters: {normalize: false}
    stretches:
      layout: "5b1a7c0d9e2f4a68"
      parts:
        - {from: [model.embed_tokens.weight, 0], value: {math: 0.81, spanish: 0.32}}
        - {from: [model.layers.7.mlp.up_proj.weight, 51234], value: {math: 0.32, spanish: 0.81}}

or a route through blocks of models, only as the whole recipe (see ``Route``)::

    route:
      models: {math: zoo:math-en, merged: {method: linear, experts: {...}}}
      ends: math                       # embeddings, final norm and head; the first hop's model when left out
      hops:                            # [model, block] or [model, block, scale of its input]
        - [math, 0]
        - [merged, 7, 0.9]
      scale_target: stream             # or branch
      output_scale: 1.1                # before the final norm
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import InvalidInput, Problem, few_problems
from evomerge.recipes.recipe import Merge, Modules, Node, Recipe, Route, Rule, Source, Stack
from evomerge.recipes.recipe_reader import SOURCE_KEYS, RecipeReader, parse_source
from evomerge.recipes.route_yaml import route_lines
from evomerge.recipes.stretches_yaml import stretch_lines
from evomerge.recipes.validate import recipe_problems
from evomerge.recipes.vocabulary_yaml import WORDS, vocabulary_value
from evomerge.yaml_files import format_flow, parse_yaml_documents, read_yaml_text


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file in evomerge's or in mergekit's form.

    Raises:
        InvalidInput: everything wrong with the file.
    """
    return parse_recipe(read_yaml_text(path), str(path))


def parse_recipe(text: str, where: str = "recipe") -> Recipe:
    """Parse recipe YAML in evomerge's or in mergekit's form.

    Args:
        text: the YAML.
        where: file name shown in errors.

    Raises:
        InvalidInput: everything wrong with the text.
    """
    documents = parse_yaml_documents(text, where)
    if len(documents) == 1:
        return recipe_from_mapping(documents[0], where)
    if any("merge_method" in entries for entries in documents):
        from evomerge.recipes.mergekit_yaml import recipe_from_mergekit

        return recipe_from_mergekit(documents, where)
    raise InvalidInput([Problem(where, "several YAML documents (---) in one file; expected one")])


def recipe_from_mapping(entries: Mapping[str, Any], where: str) -> Recipe:
    """The recipe of a YAML mapping, of either form.

    Raises:
        InvalidInput: everything wrong with it.
    """
    if "merge_method" in entries:
        from evomerge.recipes.mergekit_yaml import recipe_from_mergekit

        return recipe_from_mergekit([entries], where)
    reader = RecipeReader()
    recipe = reader.recipe(entries)
    problems = [Problem(f"{where}: {key}" if key else where, message) for key, message in reader.problems]
    if recipe is not None:
        broken = [problem.where for problem in problems]
        for problem in recipe_problems(recipe, where):
            if not any(problem.where.startswith(place) or place.startswith(problem.where) for place in broken):
                problems.append(problem)
    if problems or recipe is None:
        raise InvalidInput(few_problems(problems))
    return recipe


def format_recipe(recipe: Recipe) -> str:
    """The recipe in evomerge's own form; parsing it gives an equal recipe, to the last bit."""
    lines: list[str] = []
    if isinstance(recipe.model, Source):
        lines.append(f"model: {format_flow(_source_value(recipe.model))}")
    else:
        lines.extend(_inner_lines(recipe.model, ""))
    if recipe.dtype is not None:
        lines.append(f"dtype: {recipe.dtype}")
    lines.extend(_tokenizer_lines(recipe))
    if recipe.options:
        lines.append(f"options: {format_flow(dict(recipe.options))}")
    for name in ("chat_template", "parity", "compute_dtype"):
        if getattr(recipe, name) is not None:
            lines.append(f"{name}: {format_flow(getattr(recipe, name))}")
    return "\n".join(lines) + "\n"


def _tokenizer_lines(recipe: Recipe) -> Iterator[str]:
    if recipe.vocabulary is None:
        if recipe.tokenizer is not None:
            value = _source_value(recipe.tokenizer)
            yield f"tokenizer: {format_flow({'model': value} if value in WORDS else value)}"
        return
    entries = vocabulary_value(recipe.vocabulary, _source_value)
    for name, source in (("reference", recipe.tokenizer), ("base", recipe.vocabulary.base)):
        if source is not None:
            entries[name] = _source_value(source)
    plain = entries["source"] if set(entries) == {"source"} and entries["source"] in WORDS else entries
    yield f"tokenizer: {format_flow(plain)}"


def _source_value(source: Source) -> Any:
    text = str(source)
    if parse_source(text) == source:
        return text
    return {name: getattr(source, name) for name in SOURCE_KEYS if getattr(source, name) is not None}


def _inner_lines(node: Merge | Stack | Modules | Route, indent: str) -> Iterator[str]:
    if isinstance(node, Merge):
        yield from _merge_lines(node, indent)
        return
    if isinstance(node, Route):
        yield from route_lines(node, lambda name, inner: _node_lines(name, inner, "    "))
        return
    if isinstance(node, Modules):
        yield f"{indent}modules:"
        for name, inner in node.parts:
            yield from _node_lines(name, inner, indent + "  ")
        return
    yield f"{indent}stack:"
    for part in node.parts:
        blocks = [part.start, part.end - 1]
        if isinstance(part.node, Source):
            yield f"{indent}  - {format_flow({'from': _source_value(part.node), 'blocks': blocks})}"
        else:
            yield f"{indent}  - blocks: {format_flow(blocks)}"
            yield f"{indent}    from:"
            yield from _inner_lines(part.node, indent + "      ")


def _merge_lines(merge: Merge, indent: str) -> Iterator[str]:
    yield f"{indent}method: {format_flow(merge.method)}"
    if merge.base is not None:
        yield from _node_lines("base", merge.base, indent)
    yield f"{indent}experts:"
    for name, expert in merge.experts:
        yield from _node_lines(name, expert, indent + "  ")
    if merge.parameters:
        yield f"{indent}parameters:"
    for name, rules in merge.parameters:
        value = _compact(rules)
        if value is not None:
            yield f"{indent}  {format_flow(name)}: {format_flow(value)}"
            continue
        yield f"{indent}  {format_flow(name)}:"
        for group in _groups(rules):
            yield f"{indent}    - {format_flow(_rule_value(group))}"
    yield from stretch_lines(merge, indent)
    if merge.seed:
        yield f"{indent}seed: {merge.seed}"


def _node_lines(name: str, node: Node, indent: str) -> Iterator[str]:
    if isinstance(node, Source):
        yield f"{indent}{format_flow(name)}: {format_flow(_source_value(node))}"
    else:
        yield f"{indent}{format_flow(name)}:"
        yield from _inner_lines(node, indent + "  ")


def _compact(rules: tuple[Rule, ...]) -> Any:
    """A scalar, a gradient or one value per expert, where the rules are no more than that."""
    if len(rules) == 1 and rules[0] == Rule(rules[0].value):
        return _plain(rules[0].value)
    names = [rule.expert for rule in rules]
    distinct = rules and None not in names and len(set(names)) == len(names)
    if distinct and all(rule == Rule(rule.value, expert=rule.expert) for rule in rules):
        return {str(rule.expert): _plain(rule.value) for rule in rules}
    return None


def _groups(rules: tuple[Rule, ...]) -> Iterator[list[Rule]]:
    """Neighbouring rules that differ only in expert and value, so that one line can hold them."""
    group: list[Rule] = []
    for rule in rules:
        if group and not _joins(rule, group):
            yield group
            group = []
        group.append(rule)
    if group:
        yield group


def _joins(rule: Rule, group: list[Rule]) -> bool:
    if rule.expert is None or group[0].expert is None or rule.expert in [other.expert for other in group]:
        return False
    return _matcher(rule) == _matcher(group[0])


def _matcher(rule: Rule) -> tuple[Any, ...]:
    return rule.blocks, rule.component, rule.contains, rule.outside_blocks


def _rule_value(group: list[Rule]) -> dict[str, Any]:
    first = group[0]
    entries: dict[str, Any] = {}
    if first.blocks is not None:
        start, end = first.blocks
        entries["blocks"] = start if end == start + 1 else [start, end - 1]
    for name in ("component", "contains"):
        if getattr(first, name) is not None:
            entries[name] = getattr(first, name)
    if first.outside_blocks:
        entries["outside_blocks"] = True
    if len(group) > 1:
        entries["value"] = {str(rule.expert): _plain(rule.value) for rule in group}
    else:
        if first.expert is not None:
            entries["expert"] = first.expert
        entries["value"] = _plain(first.value)
    return entries


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
