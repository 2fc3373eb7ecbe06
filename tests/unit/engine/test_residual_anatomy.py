"""What a block reads from and writes to the residual stream, in every family, and blocks that cannot be understood."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evomerge.engine.block_stacks import module_stacks
from evomerge.engine.residual_anatomy import ResidualAnatomy, ScaledTensor, residual_anatomy
from evomerge.errors import UserError

from .conftest import CONFIGS, GROUPED, SMALL, tiny_config

PLAIN = (("input_layernorm", "post_attention_layernorm"), ("self_attn.o_proj", "mlp.down_proj"))
BEHIND = ("post_attention_layernorm", "post_feedforward_layernorm")
AROUND = (("input_layernorm", "pre_feedforward_layernorm"), BEHIND)
KINDS: dict[str, tuple[dict[str, Any], tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "llama": ({}, PLAIN),
    "mistral": ({}, PLAIN),
    "qwen2": ({}, PLAIN),
    "qwen3": ({}, PLAIN),
    "phi3": ({}, PLAIN),
    "gemma2": ({}, AROUND),
    "gemma3_text": ({}, AROUND),
    "gpt2": ({}, (("ln_1", "ln_2"), ("attn.c_proj", "mlp.c_proj"))),
    "gpt_neox": ({}, (("input_layernorm", "post_attention_layernorm"), ("attention.dense", "mlp.dense_4h_to_h"))),
    "olmo2": (SMALL, ((), BEHIND)),
    "granite": ({**GROUPED, "residual_multiplier": 0.22, "embedding_multiplier": 12.0}, PLAIN),
    "cohere": (GROUPED, (("input_layernorm",), PLAIN[1])),
    "bloom": (
        {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 64},
        (("input_layernorm", "post_attention_layernorm"), ("self_attention.dense", "mlp.dense_4h_to_h")),
    ),
    "mixtral": ({**GROUPED, "num_local_experts": 4}, (PLAIN[0], ("self_attn.o_proj", "mlp.experts"))),
}


def anatomy_of(config: Any) -> ResidualAnatomy:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return residual_anatomy(model, module_stacks(model)[0].name, 1)


def config_of(kind: str, changes: dict[str, Any]) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return tiny_config(kind, **changes) if kind in CONFIGS else CONFIG_MAPPING[kind](**changes)


@pytest.mark.parametrize("kind", KINDS)
def test_reads_and_writes_are_found(kind: str) -> None:
    changes, (norms, writes) = KINDS[kind]
    found = anatomy_of(config_of(kind, changes))
    assert (found.input_norms, found.writes) == (norms, writes)
    assert found.fold_problem is None
    assert found.sign_problem is None
    assert found.final_norm is not None


def test_a_large_model_is_not_needed() -> None:
    """Widths of a 70B Llama; what is built has a block of four attention matrices only."""
    sizes = {"hidden_size": 1024, "intermediate_size": 65536, "num_hidden_layers": 80, "vocab_size": 128000}
    found = anatomy_of(tiny_config("llama", **sizes, num_attention_heads=8))
    assert (found.input_norms, found.writes) == PLAIN


def test_gains_that_count_from_one_are_told_apart() -> None:
    assert anatomy_of(tiny_config("gemma2")).write_tensors[0] == (ScaledTensor("post_attention_layernorm.weight", 1.0),)
    assert anatomy_of(tiny_config("llama")).final_norm == ScaledTensor("model.norm.weight", 0.0)


def test_biases_are_written_too() -> None:
    names = [entry.name for entry in anatomy_of(tiny_config("gpt2")).write_tensors[1]]
    assert names == ["mlp.c_proj.weight", "mlp.c_proj.bias"]


def test_experts_are_found_inside_their_layer() -> None:
    sizes = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 32}
    found = anatomy_of(config_of("qwen2_moe", {**GROUPED, **sizes}))
    assert found.writes[1] == "mlp"
    names = {entry.name for entry in found.write_tensors[1]}
    assert names == {"mlp.experts.down_proj", "mlp.shared_expert.down_proj.weight"}
    assert found.fold_problem is None


def test_a_norm_without_a_gain_has_no_sign_to_turn() -> None:
    found = anatomy_of(config_of("olmo", SMALL))
    assert found.fold_problem is None
    assert found.sign_problem == "input_layernorm has no gain whose sign could be turned"


def test_a_norm_behind_the_sum_is_no_residual_stream() -> None:
    config = config_of("opt", {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16, "do_layer_norm_before": False})
    with pytest.raises(UserError, match="OPTDecoderLayer cannot be understood: its output is no sum of its input"):
        anatomy_of(config)
