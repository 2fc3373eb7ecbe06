"""Whether models of different depth can lend blocks to one path, and what is said where they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.engine.route_fit import check_route_models
from evomerge.errors import InvalidInput
from evomerge.recipes.recipe import Source

from .conftest import tiny_config, tiny_model


def saved(root: Path, name: str, kind: str = "llama", **changes: Any) -> tuple[str, Source]:
    model = tiny_model(tiny_config(kind, **changes), 0)
    model.save_pretrained(root / name)
    return name, Source(str(root / name))


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Source]:
    return saved(tmp_path_factory.mktemp("first"), "math")


def test_depths_and_sizes_come_from_headers(shallow: tuple[str, Source], tmp_path: Path) -> None:
    deep = saved(tmp_path, "deep", num_hidden_layers=5, tie_word_embeddings=False)
    (first, second), notes = check_route_models([shallow, deep])
    # query and output 16x16, key and value 8x16, three matrices of the MLP 32x16, two norms
    block = 2 * 256 + 2 * 128 + 3 * 512 + 2 * 16
    assert (first.name, first.block_parameters, first.outside_parameters) == ("math", (block,) * 2, 64 * 16 + 16)
    assert (second.block_parameters, second.outside_parameters) == ((block,) * 5, 2 * 64 * 16 + 16)
    assert notes == ()


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("mistral", {}, "other is a MistralForCausalLM, math ({first}) a LlamaForCausalLM; one path needs models of"),
        ("llama", {"hidden_size": 32}, "the hidden size of other is 32, that of math ({first}) 16; one path needs"),
        ("llama", {"vocab_size": 72}, "the vocabulary of other is 72, that of math ({first}) 64; merge the vocab"),
        ("llama", {"num_key_value_heads": 2}, "the number of key-value heads of other is 2, that of math ({first}) 1"),
        (
            "llama",
            {"num_attention_heads": 4, "head_dim": 4, "num_key_value_heads": 2},  # the same shapes, cut differently
            "the number of attention heads of other is 4, that of math ({first}) 2",
        ),
        (
            "llama",
            {"intermediate_size": 48},
            "blocks of other have mlp.down_proj.weight [16, 48], those of math ({first}) [16, 32]; one path needs",
        ),
        (
            "llama",
            {"attention_bias": True},
            "blocks of other have self_attn.k_proj.bias [8], those of math ({first}) none",
        ),
    ],
)
def test_what_cannot_be_one_path(
    shallow: tuple[str, Source], tmp_path: Path, kind: str, changes: dict[str, Any], expected: str
) -> None:
    other = saved(tmp_path, "other", kind, **changes)
    with pytest.raises(InvalidInput) as caught:
        check_route_models([shallow, other])
    assert expected.format(first=shallow[1]) in str(caught.value)
    assert all(problem.where == f"model {other[1]}" for problem in caught.value.problems)


def test_all_problems_at_once(shallow: tuple[str, Source], tmp_path: Path) -> None:
    wide = saved(tmp_path, "wide", hidden_size=32, vocab_size=72)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput) as caught:
        check_route_models([shallow, wide, ("empty", Source(str(tmp_path / "empty")))])
    assert len(caught.value.problems) == 3


def test_settings_of_whole_models_are_told(shallow: tuple[str, Source], tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 20000.0}
    other = saved(tmp_path, "other", rope_parameters=rope, rms_norm_eps=1e-3)
    _, notes = check_route_models([shallow, other])
    assert notes == (
        "other: rope_theta is 20000.0, that of math is 10000.0, which counts for all blocks of a path",
        "other: rms_norm_eps is 0.001, that of math is 1e-06, which counts for all blocks of a path",
    )
