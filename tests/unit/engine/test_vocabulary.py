"""Tokens that differ between models, and chat templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers import models as kinds
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from evomerge.engine.live_model import LiveModel
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.errors import InvalidInput, UserError
from evomerge.recipes.chat_templates import TEMPLATES
from evomerge.recipes.recipe import Merge, Recipe, Rule, Source, TokenRow, Vocabulary

from .conftest import Family, tiny_config, tiny_model

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
]


def save_words(directory: Path, words: list[str], added: tuple[str, ...] = (), template: str | None = None) -> None:
    """A tokenizer of whole words."""
    core = Tokenizer(kinds.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token=words[0], eos_token=words[1])
    tokenizer.add_tokens(list(added))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)


@pytest.fixture
def model_of(tmp_path: Path) -> Callable[..., Source]:
    def make(name: str, words: list[str], rows: int | None = None, kind: str = "llama", **changes: Any) -> Source:
        config = tiny_config(kind, vocab_size=rows or len(words), tie_word_embeddings=False, eos_token_id=1, **changes)
        tiny_model(config, len(name)).save_pretrained(tmp_path / name)
        save_words(tmp_path / name, words)
        return Source(str(tmp_path / name))

    return make


def linear(*sources: Source, vocabulary: Vocabulary | None = None, **others: Any) -> Recipe:
    experts = tuple((f"m{index}", source) for index, source in enumerate(sources))
    merge = Merge("linear", experts, None, (("coefficient", (Rule(0.5),)), ("normalize", (Rule(False),))))
    return Recipe(merge, vocabulary=vocabulary, **others)


def rows_of(out: Path, name: str = "model.embed_tokens.weight") -> dict[str, torch.Tensor]:
    table = load_file(out / "model.safetensors")[name]
    return {token: table[index] for token, index in AutoTokenizer.from_pretrained(out).get_vocab().items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_union_of_disjoint_tokens(kind: str, model_of: Callable[..., Source], tmp_path: Path) -> None:
    first = model_of("a", ["?", ".", "x", "y"], kind=kind)
    second = model_of("bb", ["?", ".", "z"], kind=kind)
    out = merge_to_disk(linear(first, second, vocabulary=Vocabulary("union")), tmp_path / "out")
    table = "transformer.wte.weight" if kind == "gpt2" else "model.embed_tokens.weight"
    a, b, ours = (rows_of(Path(path), table) for path in (first.model, second.model, out))
    assert ours.keys() == {"?", ".", "x", "y", "z"}
    torch.testing.assert_close(ours["?"], (a["?"] + b["?"]) / 2)
    torch.testing.assert_close(ours["x"], a["x"])  # the other model borrows it
    torch.testing.assert_close(ours["z"], b["z"])
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 5


def test_a_token_of_several_models_is_their_mean_or_the_bases(model_of: Callable[..., Source], tmp_path: Path) -> None:
    sources = [model_of("a", ["?", ".", "x"]), model_of("bb", ["?", ".", "x"]), model_of("ccc", ["?", ".", "z"])]
    a, b, c = (rows_of(Path(source.model)) for source in sources)
    ours = rows_of(merge_to_disk(linear(*sources, vocabulary=Vocabulary("union")), tmp_path / "mean"))
    torch.testing.assert_close(ours["x"], (a["x"] + b["x"]) / 2 * 1.5)
    with_base = Vocabulary("union", base=sources[1])
    ours = rows_of(merge_to_disk(linear(*sources, vocabulary=with_base), tmp_path / "base"))
    torch.testing.assert_close(ours["x"], (a["x"] + 2 * b["x"]) / 2)
    torch.testing.assert_close(ours["z"], 1.5 * c["z"])


def test_special_numbers_follow_their_tokens(model_of: Callable[..., Source], tmp_path: Path) -> None:
    first = model_of("a", ["?", ".", "x"])
    second = model_of("bb", ["x", "?", "."])
    recipe = linear(first, second, vocabulary=Vocabulary(second))
    out = merge_to_disk(recipe, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 2
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 2
    assert AutoTokenizer.from_pretrained(out).get_vocab() == {"x": 0, "?": 1, ".": 2}


def test_different_vocabularies_name_the_way_out(model_of: Callable[..., Source], tmp_path: Path) -> None:
    first, second = model_of("a", ["?", ".", "x", "y"]), model_of("bb", ["?", ".", "z"])
    with pytest.raises(InvalidInput, match="tokenizer: union"):
        merge_to_disk(linear(first, second), tmp_path / "out")
    live = LiveModel(first, [("m0", first)], dtype="float32", device="cpu")
    with pytest.raises(UserError, match="changes the vocabulary"):
        live.apply(linear(first, second, vocabulary=Vocabulary("union")))
    live.apply(linear(first, first, vocabulary=Vocabulary("base")))  # changes nothing


def test_rows_that_are_not_there(model_of: Callable[..., Source], tmp_path: Path) -> None:
    first, second = model_of("a", ["?", ".", "x"]), model_of("bb", ["?", ".", "z"])
    for row, expected in (
        (TokenRow("new", second, of_token="x"), "bb has no token 'x'"),
        (TokenRow("new", second, of_id=3), "bb has rows 0 to 2, got 3"),
    ):
        with pytest.raises(UserError, match=expected):
            merge_to_disk(linear(first, second, vocabulary=Vocabulary("union", (row,))), tmp_path / "out")
    for path in Path(second.model).glob("token*"):
        path.unlink()
    out = merge_to_disk(linear(first, second, vocabulary=Vocabulary("union")), tmp_path / "same")  # as the first's
    assert rows_of(out).keys() == {"?", ".", "x"}
    third = model_of("ccc", ["?", ".", "z"], rows=5)
    for path in Path(third.model).glob("token*"):
        path.unlink()
    with pytest.raises(UserError, match="no tokenizer, and 5 rows where"):
        merge_to_disk(linear(first, third, vocabulary=Vocabulary("union")), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_words_tokenizer_with_more_tokens_than_rows_is_refused(
    model_of: Callable[..., Source], tmp_path: Path
) -> None:
    first = model_of("a", ["?", ".", "x", "y"], rows=3)
    with pytest.raises(UserError, match="1 of its tokens have no row"):
        merge_to_disk(linear(first, first, vocabulary=Vocabulary("union")), tmp_path / "out")


def templated(path: Path) -> str:
    return str(AutoTokenizer.from_pretrained(path).apply_chat_template(CONVERSATION, tokenize=False))


def test_named_templates(family: Family, tmp_path: Path) -> None:
    wanted = {
        "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHo<|im_end|>\n",
        "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHo<|eot_id|>",
        "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHo</s>\n\n",
        "mistral": "<s>[INST] Be brief.\n\nHi [/INST] Ho</s>",
        "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Ho[|endofturn|]\n",
    }
    assert wanted.keys() == TEMPLATES.keys()
    for name, text in wanted.items():
        out = merge_to_disk(Recipe(family.base, chat_template=name), tmp_path / name)
        assert templated(out) == text


def test_literal_and_most_common_templates(model_of: Callable[..., Source], tmp_path: Path) -> None:
    sources = [model_of("a" * (index + 1), ["?", ".", "x"]) for index in range(4)]
    for source, template in zip(sources, ("{{ 'one of a kind' }}", None, "{{ 'common' }}\n", "{{ 'common' }}")):
        save_words(Path(source.model), ["?", ".", "x"], template=template)
    assert templated(merge_to_disk(linear(*sources), tmp_path / "own")) == "one of a kind"
    assert templated(merge_to_disk(linear(*sources, chat_template="auto"), tmp_path / "auto")) == "common"
    literal = "{{ messages[1]['content'] + '!' }}"
    both = linear(*sources, chat_template=literal, vocabulary=Vocabulary("union"))
    assert templated(merge_to_disk(both, tmp_path / "literal")) == "Hi!"
    with pytest.raises(UserError, match="chat_template: not valid Jinja, line 1"):
        merge_to_disk(linear(*sources, chat_template="{% if messages %} no end of it"), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_an_older_template_does_not_win(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "old"
    merge_to_disk(Recipe(family.base), path)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ 'old' }}"}))
    assert templated(path) == "old"
    out = merge_to_disk(Recipe(Source(str(path)), chat_template="chatml"), tmp_path / "new")
    assert templated(out).startswith("<|im_start|>system")
