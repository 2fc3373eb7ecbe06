"""Every family of architectures: merged to disk, loaded by transformers, compared with a merge by hand in memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.engine.architecture import Architecture
from evomerge.engine.checkpoint import Checkpoint
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.engine.model_tensors import check_models
from evomerge.recipes.recipe import Merge, Recipe, Rule, Source

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "vocab_size": 64, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0}  # fmt: skip
GROUPED = {**TEXT, "num_key_value_heads": 1, "head_dim": 8}
EXPERTS = {**GROUPED, "num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
           "shared_expert_intermediate_size": 8, "decoder_sparse_step": 1}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 8, "patch_size": 4}  # fmt: skip
TOWERS = {"text_config": {**TEXT}, "vision_config": {**VISION}, "projection_dim": 8}
MAMBA = {"hidden_size": 16, "num_hidden_layers": 3, "vocab_size": 64, "state_size": 4, "conv_kernel": 2}
T5 = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2, "vocab_size": 64,
      "decoder_start_token_id": 0}  # fmt: skip
LLAVA = {"text_config": {"model_type": "llama", **GROUPED},
         "vision_config": {"model_type": "clip_vision_model", **VISION}, "image_token_id": 63, "image_seq_length": 4,
         "vision_feature_layer": -1}  # fmt: skip

# class, model type, settings, blocks of each stack
CASES: dict[str, tuple[str, str, dict[str, Any], tuple[int, ...]]] = {
    "llama": ("LlamaForCausalLM", "llama", GROUPED, (3,)),
    "mistral": ("MistralForCausalLM", "mistral", GROUPED, (3,)),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", {**GROUPED, "tie_word_embeddings": True}, (3,)),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", GROUPED, (3,)),
    "gemma2": ("Gemma2ForCausalLM", "gemma2", GROUPED, (3,)),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text", GROUPED, (3,)),
    "phi3": ("Phi3ForCausalLM", "phi3", GROUPED, (3,)),
    "gpt2": ("GPT2LMHeadModel", "gpt2", {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 64}, (3,)),
    "gpt_neox": ("GPTNeoXForCausalLM", "gpt_neox", TEXT, (3,)),
    "falcon": ("FalconForCausalLM", "falcon", TEXT, (3,)),
    "mixtral": ("MixtralForCausalLM", "mixtral", EXPERTS, (3,)),
    "qwen2 experts": ("Qwen2MoeForCausalLM", "qwen2_moe", EXPERTS, (3,)),
    "qwen3 experts": ("Qwen3MoeForCausalLM", "qwen3_moe", EXPERTS, (3,)),
    "mamba": ("MambaForCausalLM", "mamba", MAMBA, (3,)),
    "mamba2": ("Mamba2ForCausalLM", "mamba2", {**MAMBA, "num_heads": 4, "head_dim": 8, "n_groups": 1}, (3,)),
    "falcon mamba": ("FalconMambaForCausalLM", "falcon_mamba", MAMBA, (3,)),
    "bert": ("BertForMaskedLM", "bert", TEXT, (3,)),
    "bert classifier": ("BertForSequenceClassification", "bert", {**TEXT, "num_labels": 3}, (3,)),
    "roberta": ("RobertaForMaskedLM", "roberta", TEXT, (3,)),
    "vit": ("ViTForImageClassification", "vit", {**VISION, "num_labels": 4}, (2,)),
    "clip": ("CLIPModel", "clip", TOWERS, (3, 2)),
    "siglip": ("SiglipModel", "siglip", TOWERS, (3, 2)),
    "t5": ("T5ForConditionalGeneration", "t5", T5, (2, 3)),
    "llava": ("LlavaForConditionalGeneration", "llava", LLAVA, (3, 2)),
}  # fmt: skip


def build(case: str, seed: int) -> Any:
    """A random model; experts are the base with a little noise on everything."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    name, model_type, settings, _ = CASES[case]
    torch.manual_seed(0)
    model = getattr(transformers, name)(CONFIG_MAPPING[model_type](**settings)).eval()
    base, noise = torch.Generator().manual_seed(1), torch.Generator().manual_seed(seed + 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=base) * 0.2 + (1.0 if parameter.ndim == 1 else 0.0))
            if seed:
                parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.05)
    return model


def inputs(model: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    tokens = torch.randint(3, 60, (2, 6), generator=generator)
    pixels = torch.randn(2, 3, 8, 8, generator=generator)
    kind = model.config.model_type
    if kind == "vit":
        return {"pixel_values": pixels}
    if kind in ("clip", "siglip"):
        return {"input_ids": tokens, "pixel_values": pixels}
    if kind == "t5":
        return {"input_ids": tokens, "decoder_input_ids": tokens.flip(1)}
    if kind == "llava":
        return {"input_ids": torch.cat([torch.full((2, 4), 63), tokens], 1), "pixel_values": pixels}
    return {"input_ids": tokens}


def outputs(model: Any) -> list[Tensor]:
    with torch.no_grad():
        found = model(**inputs(model)).to_tuple()
    return [value for value in found if isinstance(value, Tensor)]


def trimmed_and_elected(taus: list[Tensor], coefficients: list[float], density: float) -> Tensor:
    """TIES by hand: arXiv 2306.01708, section 3, with coefficients, normalised."""
    kept = []
    for tau, coefficient in zip(taus, coefficients):
        count = max(1, int(density * tau.numel()))
        largest = tau.abs().flatten().sort(descending=True, stable=True).indices[:count]
        mask = torch.zeros(tau.numel()).index_fill_(0, largest, 1.0).view(tau.shape)
        kept.append(tau * mask * coefficient)
    sign = sum(kept).sign()
    agree = [(tau.sign() == sign) & (tau != 0) for tau in kept]
    total = sum(torch.where(ok, tau, 0.0) for ok, tau in zip(agree, kept))
    divisor = sum(ok * coefficient for ok, coefficient in zip(agree, coefficients))
    return total / torch.where(divisor.abs() > 1e-8, divisor, 1.0)


def by_hand(method: str, models: list[Any]) -> Any:
    merged = models[0]
    states = [dict(model.named_parameters()) for model in models]
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            tensors = [state[name].clone() for state in states]
            if method == "linear":
                parameter.copy_(0.2 * tensors[0] + 0.5 * tensors[1] + 0.3 * tensors[2])
            else:
                taus = [tensor - tensors[0] for tensor in tensors[1:]]
                parameter.copy_(tensors[0] + trimmed_and_elected(taus, [0.6, 0.9], 0.5))
    return merged


def recipe(method: str, folders: list[Path]) -> Recipe:
    names = ("base", "first", "second")
    experts = tuple((name, Source(str(folder))) for name, folder in zip(names, folders))
    if method == "linear":
        rules = tuple(Rule(value, expert=name) for name, value in zip(names, (0.2, 0.5, 0.3)))
        return Recipe(Merge("linear", experts, None, (("coefficient", rules),)))
    rules = tuple(Rule(value, expert=name) for name, value in zip(names[1:], (0.6, 0.9)))
    return Recipe(Merge("ties", experts[1:], experts[0][1], (("coefficient", rules), ("density", (Rule(0.5),)))))


@pytest.fixture(scope="module")
def folders_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, list[Path]] = {}

    def get(case: str) -> list[Path]:
        if case not in made:
            root = tmp_path_factory.mktemp("models")
            made[case] = [root / str(seed) for seed in range(3)]
            for seed, folder in enumerate(made[case]):
                build(case, seed).save_pretrained(folder)
        return made[case]

    return get


def load(case: str, folder: Path) -> Any:
    import transformers

    model, info = getattr(transformers, CASES[case][0]).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def assert_equal(case: str, folder: Path, expected: Any) -> None:
    loaded = load(case, folder)
    theirs = dict(expected.named_parameters())
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-6, atol=1e-6)
    ours, wanted = outputs(loaded), outputs(expected)
    assert ours
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("case", CASES)
def test_merged_model_equals_one_merged_by_hand(case: str, method: str, folders_of: Any, tmp_path: Path) -> None:
    folders = folders_of(case)
    out = merge_to_disk(recipe(method, folders), tmp_path / "out")
    assert_equal(case, out, by_hand(method, [load(case, folder) for folder in folders]))
    assert set(Checkpoint(out).names) == set(Checkpoint(folders[0]).names)


@pytest.mark.parametrize("case", CASES)
def test_blocks_and_components_are_found(case: str, folders_of: Any) -> None:
    architecture = Architecture.of_directory(folders_of(case)[0])
    stacks = CASES[case][3]
    assert tuple(stack.count for stack in architecture.stacks) == stacks
    assert architecture.num_blocks == sum(stacks)
    for block in range(architecture.num_blocks):
        found = Counter(slot.component for slot in architecture.slots if slot.block == block)
        assert found["attention"]
        assert found["norms"]
        assert found["mlp"] or "mamba" in case
        assert set(found) <= {"attention", "mlp", "norms"}, found
    assert any(slot.component == "embeddings" for slot in architecture.slots) or case == "vit"


@pytest.mark.parametrize("case", ["mixtral", "qwen2 experts", "qwen3 experts"])
def test_experts_stored_fused_are_read_and_written_fused(case: str, folders_of: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folders = folders_of(case)
    fused = []
    for number, folder in enumerate(folders):
        model, target = load(case, folder), tmp_path / str(number)
        model.config.save_pretrained(target)
        save_file(model.state_dict(), target / "model.safetensors", metadata={"format": "pt"})
        fused.append(target)
    assert any(".experts.0." in name for name in Checkpoint(folders[0]).names)
    assert not any(".experts.0." in name for name in Checkpoint(fused[0]).names)
    mixed = [fused[0], folders[1], fused[2]]
    out = merge_to_disk(recipe("ties", mixed), tmp_path / "out")
    assert_equal(case, out, by_hand("ties", [load(case, folder) for folder in folders]))
    assert set(Checkpoint(out).names) == set(Checkpoint(fused[0]).names)
    apart = merge_to_disk(recipe("ties", [folders[0], fused[1], fused[2]]), tmp_path / "apart")
    assert set(Checkpoint(apart).names) == set(Checkpoint(folders[0]).names)
    assert_equal(case, apart, by_hand("ties", [load(case, folder) for folder in folders]))


def test_an_expert_that_lacks_one_routed_expert_is_refused(folders_of: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from evomerge.errors import InvalidInput

    folders = folders_of("mixtral")
    tensors = load_file(folders[1] / "model.safetensors")
    gone = next(name for name in tensors if ".experts.1." in name)
    del tensors[gone]
    (tmp_path / "config.json").write_bytes((folders[1] / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InvalidInput, match=r"model.layers.0.mlp.experts.*complete"):
        check_models([Source(str(folders[0])), Source(str(tmp_path))])
