from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from evomerge.engine.live_model import LiveModel, choose_device, choose_dtype, cpu_computes_bfloat16
from evomerge.engine.model_tensors import check_models
from evomerge.errors import InvalidInput, MergeFailed, UserError
from evomerge.methods.catalogue import SPECS
from evomerge.recipes.recipe import Merge, Recipe, Rule, Source

from .conftest import Family, fine_tuned, recipe_of, tiny_config, tiny_model

State = dict[str, torch.Tensor]


def snapshot(live: LiveModel) -> State:
    return {name: tensor.clone() for name, tensor in live.model.state_dict().items()}


def assert_same(first: State, second: State) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


@pytest.fixture
def live(family: Family) -> LiveModel:
    return LiveModel(family.base, family.experts, dtype="float32", device="cpu")


@pytest.mark.parametrize("method", SPECS)
def test_other_candidates_between_change_nothing(method: str, live: LiveModel, family: Family) -> None:
    first, second = recipe_of(family, method, seed=1), recipe_of(family, method, seed=2)
    live.apply(first)
    once = snapshot(live)
    live.apply(second)
    assert any(not torch.equal(once[name], tensor) for name, tensor in snapshot(live).items())
    live.apply(Recipe(family.experts[0][1]))
    live.apply(first)
    assert_same(once, snapshot(live))


def test_small_state_memory_changes_nothing(live: LiveModel, family: Family) -> None:
    tight = LiveModel(family.base, family.experts, dtype="float32", device="cpu", state_memory_bytes=4000)
    for seed in (1, 2):
        for model in (live, tight):
            model.apply(recipe_of(family, "ties", seed))
        assert_same(snapshot(live), snapshot(tight))


def test_single_sources_are_copied(live: LiveModel, family: Family) -> None:
    from transformers import AutoModelForCausalLM

    for source in (family.experts[1][1], family.base):
        live.apply(Recipe(source))
        direct = AutoModelForCausalLM.from_pretrained(source.model, dtype=torch.float32)
        assert_same(snapshot(live), direct.state_dict())


def test_tied_head_follows_the_embeddings(live: LiveModel, family: Family, tmp_path: Path) -> None:
    moved = fine_tuned(tiny_model(tiny_config("llama"), 0, torch.bfloat16), 5, scale=0.5, frozen=())
    moved.save_pretrained(tmp_path / "moved")
    live.apply(Recipe(Source(str(tmp_path / "moved"))))
    head, embeddings = live.model.get_output_embeddings().weight, live.model.get_input_embeddings().weight
    assert head.data_ptr() == embeddings.data_ptr()
    assert torch.equal(embeddings, moved.get_input_embeddings().weight.float())


def test_buffers_are_untouched_and_parameters_stay_in_place(live: LiveModel, family: Family) -> None:
    buffers = {name: buffer.clone() for name, buffer in live.model.named_buffers()}
    places = {name: parameter.data_ptr() for name, parameter in live.model.named_parameters()}
    live.apply(recipe_of(family, "linear", 3))
    assert places == {name: parameter.data_ptr() for name, parameter in live.model.named_parameters()}
    assert_same(buffers, dict(live.model.named_buffers()))


def test_wider_live_model_holds_rounded_weights(live: LiveModel, family: Family) -> None:
    live.apply(recipe_of(family, "linear", 3, dtype="bfloat16"))
    for parameter in live.model.parameters():
        assert torch.equal(parameter, parameter.bfloat16().float())
    rounded = snapshot(live.model)
    live.apply(recipe_of(family, "linear", 3, dtype="float32"))
    assert any(not torch.equal(parameter, parameter.bfloat16().float()) for parameter in live.model.parameters())
    live.apply(recipe_of(family, "linear", 3, dtype="bfloat16"))
    assert_same(rounded, snapshot(live.model))


def test_live_dtypes_agree(family: Family) -> None:
    recipe = recipe_of(family, "task_arithmetic", 4)
    states = []
    for dtype in ("bfloat16", "float32"):
        model = LiveModel(family.base, family.experts, dtype=dtype, device="cpu")
        model.apply(recipe)
        states.append({name: tensor.bfloat16() for name, tensor in snapshot(model).items()})
    assert_same(*states)


def test_nested_merge_equals_two_stages_in_float32(family_of: Callable[[str], Family], tmp_path: Path) -> None:
    from evomerge.engine.merge_to_disk import merge_to_disk

    family = family_of("qwen2")
    inner = Merge("linear", family.experts[:2], None, (("coefficient", (Rule(0.3, expert="math"), Rule(0.7))),))
    stage = merge_to_disk(Recipe(inner, tokenizer=family.base), tmp_path / "stage")
    parameters = (("coefficient", (Rule(0.6),)),)
    live = LiveModel(family.base, family.experts, dtype="float32", device="cpu")
    states = []
    for first in (inner, Source(str(stage))):
        experts = (("inner", first), family.experts[2])
        live.apply(Recipe(Merge("task_arithmetic", experts, family.base, parameters)))
        states.append(snapshot(live))
    assert_same(*states)


def test_lines_around_a_merge_is_that_merge_with_a_growing_scale(live: LiveModel, family: Family) -> None:
    ties = Merge("ties", family.experts, family.base, (("density", (Rule(0.5),)),))
    scales = (("alpha", (Rule(0.25),)), ("beta", (Rule(0.5),)))
    live.apply(Recipe(Merge("lines", (("merged", ties),), family.base, scales), dtype="float32"))
    modified = snapshot(live)
    growing = (Rule(0.25, blocks=(0, 1)), Rule(0.75, blocks=(1, 2)), Rule(0.25))
    live.apply(Recipe(Merge("ties", family.experts, family.base, (*ties.parameters, ("lambda", growing))), "float32"))
    for name, tensor in snapshot(live).items():
        torch.testing.assert_close(modified[name], tensor, rtol=0, atol=1e-6)


def test_modifiers_before_and_after_a_merge(live: LiveModel, family: Family) -> None:
    base, (math, spanish, capitals) = family.base, family.experts
    rounded = (("math", Merge("bitdelta", (math,), base)), ("spanish", Merge("tswitch", (spanish,), base)), capitals)
    merged = Merge("task_arithmetic", rounded, base)
    live.apply(Recipe(Merge("svc", (("merged", merged), *family.experts), base), dtype="float32"))
    found = snapshot(live)
    live.apply(Recipe(merged, dtype="float32"))
    plain = snapshot(live)
    live.apply(Recipe(base, dtype="float32"))
    start, damped = snapshot(live), 0
    for name, tensor in found.items():
        before, after = plain[name] - start[name], tensor - start[name]
        if torch.equal(before, after):
            assert "proj" not in name
        else:
            damped += 1
            assert after.norm() < before.norm()
    assert damped == 14  # seven linear maps in each of two blocks


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_nan_weights_fail_and_the_next_candidate_is_right(
    method: str, live: LiveModel, family: Family, tmp_path: Path
) -> None:
    good = recipe_of(family, method, 1)
    live.apply(good)
    before = snapshot(live)
    shutil.copytree(family.experts[0][1].model, tmp_path / "broken")
    path = tmp_path / "broken" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    broken = Source(str(tmp_path / "broken"))
    merged = recipe_of(Family(family.base, (("broken", broken), *family.experts[1:])), method, 1)
    where = r"model\.layers\.1\.mlp\.up_proj\.weight"
    for recipe, message in ((Recipe(broken), f"in 1 tensors: {where}"), (merged, f"broken: tensor {where} holds NaN")):
        for _ in range(2):
            with pytest.raises(MergeFailed, match=message):
                live.apply(recipe)
        live.apply(good)
        assert_same(before, snapshot(live))


def test_nan_coefficient_fails(live: LiveModel, family: Family) -> None:
    merge = Merge("linear", family.experts, None, (("coefficient", (Rule(float("nan")),)),))
    with pytest.raises(MergeFailed, match="coefficient"):
        live.apply(Recipe(merge, tokenizer=family.base))


def test_frozen_tensors_are_not_written_again(live: LiveModel, family: Family) -> None:
    live.apply(recipe_of(family, "ties", 1))
    embeddings = live.model.get_input_embeddings().weight
    version = embeddings._version
    live.apply(recipe_of(family, "ties", 2))
    assert embeddings._version == version
    live.apply(recipe_of(family, "linear", 2))
    assert embeddings._version > version


def test_models_that_do_not_fit_are_all_named(
    family: Family, family_of: Callable[[str], Family], tmp_path: Path
) -> None:
    tiny_model(tiny_config("llama", vocab_size=80), 0).save_pretrained(tmp_path / "vocabulary")
    tiny_model(tiny_config("llama", intermediate_size=48), 0).save_pretrained(tmp_path / "wide")
    tiny_model(tiny_config("llama", num_hidden_layers=1), 0).save_pretrained(tmp_path / "shallow")
    others = [Source(str(tmp_path / name)) for name in ("vocabulary", "wide", "shallow", "nowhere")]
    with pytest.raises(InvalidInput) as missing:
        check_models([family.base, *others])
    assert "nowhere" in str(missing.value)
    with pytest.raises(InvalidInput) as caught:
        LiveModel(family.base, [(source.model, source) for source in (*others[:3], family_of("gpt2").base)])
    text = str(caught.value)
    assert "vocabulary: model.embed_tokens.weight is [80, 16], expected [64, 16]" in text
    assert "80 tokens, expected 64" in text
    assert "gate_proj.weight is [48, 16], expected [32, 16]" in text
    assert "shallow: lacks 9 of 20 tensors" in text
    assert "It is a gpt2 model" in text


def test_untied_expert_unties_the_merge(family: Family, tmp_path: Path) -> None:
    untied = tiny_model(tiny_config("llama", tie_word_embeddings=False), 9, torch.bfloat16)
    untied.save_pretrained(tmp_path / "untied")
    expert = Source(str(tmp_path / "untied"))
    live = LiveModel(family.base, [("untied", expert)], dtype="float32", device="cpu")
    head, embeddings = live.model.get_output_embeddings().weight, live.model.get_input_embeddings().weight
    assert torch.equal(head, embeddings)  # still the base
    live.apply(Recipe(expert))
    assert torch.equal(head, untied.lm_head.weight.float())
    assert torch.equal(embeddings, untied.model.embed_tokens.weight.float())


def test_too_few_models_and_missing_base_are_refused(live: LiveModel, family: Family) -> None:
    with pytest.raises(UserError, match="base"):
        live.apply(Recipe(Merge("ties", family.experts), tokenizer=family.base))
    with pytest.raises(UserError, match="experts"):
        live.apply(Recipe(Merge("slerp", family.experts), tokenizer=family.base))
    with pytest.raises(UserError):
        live.apply(Recipe(Merge("tise", family.experts, family.base)))
    density = (("density", (Rule(0.0),)),)
    with pytest.raises(UserError, match=r"recipe: ties, tensor .*: density must be in \(0, 1\]"):
        live.apply(Recipe(Merge("ties", family.experts, family.base, density)))
    with pytest.raises(UserError, match="float8"):
        live.apply(Recipe(family.base, dtype="float8"))


def test_memory_plan_counts_what_is_held(live: LiveModel, family: Family) -> None:
    numel = sum(parameter.numel() for parameter in live.model.parameters())
    assert live.model_bytes == 4 * numel
    # The inner merge's fp32 result is held once two candidates had it, or made again for each where it does not fit.
    inner = Merge("linear", family.experts[:2], parameters=(("normalize", (Rule(False),)),))
    recipe = Recipe(Merge("linear", (("inner", inner), family.experts[2])), tokenizer=family.base)
    live.apply(recipe)
    assert live.prepared_bytes == 0
    live.apply(recipe)
    assert f"prepared merge state {4 * numel / 1e6:,.0f} MB" in live.memory_plan
    assert live.prepared_bytes == 4 * numel
    assert "4 models mapped" in live.memory_plan
    tight = LiveModel(family.base, family.experts, device="cpu", state_memory_bytes=1)
    tight.apply(recipe)
    tight.apply(recipe)
    assert tight.prepared_bytes == 0
    assert "state of 20 tensors does not fit" in tight.memory_plan


def test_tokenizer_is_the_reference_model_s(live: LiveModel, family: Family) -> None:
    assert live.tokenizer("w0 w3")["input_ids"] == [4, 7]
    assert LiveModel(None, family.experts, device="cpu").tokenizer is None


def test_dtype_policy() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert choose_dtype("auto", cuda, torch.bfloat16) == torch.bfloat16
    assert choose_dtype("auto", cuda, torch.float16) == torch.float16
    assert choose_dtype("auto", cpu, torch.float16) == torch.float32
    expected = torch.bfloat16 if cpu_computes_bfloat16() else torch.float32
    assert choose_dtype("auto", cpu, torch.bfloat16) == expected
    assert choose_dtype("bfloat16", cpu, torch.float32) == torch.bfloat16
    with pytest.raises(UserError, match="int8"):
        choose_dtype("int8", cpu, torch.float32)
    with pytest.raises(UserError, match="tpu"):
        choose_device("tpu")
