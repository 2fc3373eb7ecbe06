"""The prepared scorer gives lm-eval's answers, and steps aside where it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evomerge.evaluation.failures import ScoringFailed
from evomerge.evaluation.lm_eval_scorer import PreparedScorer
from evomerge.terms import FailureKind
from tests.unit.evaluation.asking import generations, likelihoods, prompts


def tiny(seed: int = 0, **changes: Any) -> Any:
    from tests.unit.evaluation.conftest import tiny_model

    return tiny_model(seed, **changes)


@pytest.mark.parametrize("until", [["\n"], ["a", "bc"], ["\n\n", "\nQ"], ["ab", "bca", "c"], [" ", "<eos>"], []])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_generated_text_equals_lm_evals(model: Any, tokenizer: Any, until: list[str], batch_size: int | None) -> None:
    requests = generations(prompts(16), until=until, max_gen_toks=20)
    scorer = PreparedScorer(model, tokenizer, batch_size)
    ours = scorer.generate_until(requests)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=6).generate_until(requests, disable_tqdm=True)
    assert ours == theirs
    assert scorer.notes == {"generate_until": "packed"}
    assert len(set(ours)) > 10


def test_models_that_end_by_themselves_give_lm_evals_text(tokenizer: Any) -> None:
    """An end token that is likely: rows end at many different places, without a stop string."""
    ending = tiny(3)
    with torch.no_grad():
        ending.get_input_embeddings().weight[1] *= 1.6
    requests = generations(prompts(30), until=[], max_gen_toks=40)
    ours = PreparedScorer(ending, tokenizer).generate_until(requests)
    theirs = HFLM(pretrained=ending, tokenizer=tokenizer, batch_size=30).generate_until(requests, disable_tqdm=True)
    assert ours == theirs
    assert len({len(text) for text in ours}) > 5


def test_long_prompts_lose_their_beginning_as_in_lm_eval(tokenizer: Any) -> None:
    short = tiny(max_position_embeddings=32)
    requests = generations([text * 3 for text in prompts(8)], until=["\n"], max_gen_toks=10)
    ours = PreparedScorer(short, tokenizer).generate_until(requests)
    stock = HFLM(pretrained=short, tokenizer=tokenizer, batch_size=1)
    assert ours == stock.generate_until(requests, disable_tqdm=True)
    pairs = likelihoods([(text * 3, "abc") for text in prompts(8)])
    ours_ll = PreparedScorer(short, tokenizer).loglikelihood(pairs)
    for mine, theirs in zip(ours_ll, stock.loglikelihood(pairs, disable_tqdm=True), strict=True):
        assert mine == (pytest.approx(theirs[0], rel=1e-5), theirs[1])


def test_mixed_generation_arguments_keep_their_order(model: Any, tokenizer: Any) -> None:
    texts = prompts(12)
    requests = [
        Instance("generate_until", {}, (text, {"until": ["a"], "max_gen_toks": 5 + index % 3}), 0, ("t", index, 1))
        for index, text in enumerate(texts)
    ]
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4).generate_until(requests, disable_tqdm=True)
    assert PreparedScorer(model, tokenizer).generate_until(requests) == theirs


def test_log_likelihoods_equal_lm_evals(model: Any, tokenizer: Any) -> None:
    texts = prompts(15)
    likely = PreparedScorer(model, tokenizer).generate_until(generations(texts, until=[], max_gen_toks=3))
    pairs = [pair for pair in zip(texts, likely, strict=True) if pair[1]]
    pairs += [(text, choice) for text in texts for choice in ("a", "b", " long answer", text[:3])] + [("", "abc")]
    ours = PreparedScorer(model, tokenizer, 4).loglikelihood(likelihoods(pairs))
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3).loglikelihood(
        likelihoods(pairs), disable_tqdm=True
    )
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [total for total, _ in ours] == pytest.approx([total for total, _ in theirs], rel=1e-5)
    assert any(greedy for _, greedy in ours)


def test_choices_of_one_token_share_a_forward_pass(model: Any, tokenizer: Any) -> None:
    scorer = PreparedScorer(model, tokenizer)
    pairs = [(text, choice) for text in prompts(5) for choice in "abcd"]
    [prepared] = scorer.prepare([[request] for request in likelihoods(pairs)])
    assert prepared.loglikelihood is not None
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in prompts(5))
    assert 0 < prepared.loglikelihood.num_tokens <= tokens


def test_answers_follow_the_weights(tokenizer: Any) -> None:
    """Nothing of one candidate may remain for the next: no cache, no remembered answer."""
    changing = tiny(0)
    scorer = PreparedScorer(changing, tokenizer)
    shots = "a rather long example"
    requests = generations([shots + text for text in prompts(6)], until=["\n"], max_gen_toks=8)
    pairs = likelihoods([(shots + text, "abc") for text in prompts(6)])
    both = [scorer.prepare([[r] for r in requests])[0], scorer.prepare([[r] for r in pairs])[0]]
    assert both[0].generation is not None
    assert both[1].loglikelihood is not None
    assert both[0].generation.prefixes.prefixes, "without a shared prefix the test shows less"
    assert both[1].loglikelihood.prefixes.prefixes
    first = [scorer.score(prepared) for prepared in both]
    kept = {name: value.clone() for name, value in changing.state_dict().items()}
    changing.load_state_dict(tiny(1).state_dict())
    second = [scorer.score(prepared) for prepared in both]
    changing.load_state_dict(kept)
    assert second[0] != first[0]
    assert second[1] != first[1]
    assert [scorer.score(prepared) for prepared in both] == first


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood", "loglikelihood_rolling"])
@pytest.mark.parametrize("exact", [False, True])
def test_numbers_that_are_not_finite_are_a_failure(tokenizer: Any, kind: str, exact: bool) -> None:
    from evomerge.evaluation.task_bank import _refuse_non_finite

    broken = tiny()
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    requests = {
        "generate_until": generations(["abc"], until=["\n"], max_gen_toks=4),
        "loglikelihood": likelihoods([("abc", "d")]),
        "loglikelihood_rolling": [Instance("loglikelihood_rolling", {}, ("abcdef",), 0, ("task", 0, 1))],
    }
    scorer = PreparedScorer(broken, tokenizer, exact=exact)
    [prepared] = scorer.prepare([[request] for request in requests[kind]])
    with pytest.raises(ScoringFailed) as caught:
        _refuse_non_finite(scorer.score(prepared)[0])
    assert caught.value.kind is FailureKind.NON_FINITE


def test_sampling_goes_through_lm_eval_and_follows_the_seed(model: Any, tokenizer: Any) -> None:
    scorer = PreparedScorer(model, tokenizer)
    requests = generations(prompts(4), until=["\n"], max_gen_toks=12, do_sample=True, temperature=1.0)
    [prepared] = scorer.prepare([[request] for request in requests])
    assert prepared.engine == "lm_eval"
    assert scorer.notes == {"generate_until": "lm_eval (not packed: sampling is asked for)"}
    state = torch.get_rng_state()
    first = scorer.score(prepared, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert scorer.score(prepared, seed=1) == first
    assert scorer.score(prepared, seed=2) != first


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"repetition_penalty": 1.3}, "sets repetition_penalty"),
        ({"eos_token_id": None}, "end token is not among"),
        ({"no_repeat_ngram_size": 2}, "sets no_repeat_ngram_size"),
    ],
)
def test_generation_configs_the_fast_loop_does_not_know_go_through_lm_eval(
    tokenizer: Any, change: dict[str, Any], reason: str
) -> None:
    changed = tiny()
    changed.generation_config.update(**change)
    scorer = PreparedScorer(changed, tokenizer, 4)
    requests = generations(prompts(8), until=["a"], max_gen_toks=10)
    theirs = HFLM(pretrained=changed, tokenizer=tokenizer, batch_size=4).generate_until(requests, disable_tqdm=True)
    assert scorer.generate_until(requests) == theirs
    assert reason in scorer.notes["generate_until"]


def test_a_short_attention_window_goes_through_lm_eval(tokenizer: Any) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = {
        key: value for key, value in tiny().config.to_dict().items() if key not in ("model_type", "architectures")
    }
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**{**config, "sliding_window": 16, "layer_types": None})).eval()
    scorer = PreparedScorer(model, tokenizer, 4)
    requests = generations(prompts(6), until=["a"], max_gen_toks=10)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4).generate_until(requests, disable_tqdm=True)
    assert scorer.generate_until(requests) == theirs
    assert "longer than the model's attention window (16)" in scorer.notes["generate_until"]


class _IgnoresTheMask(torch.nn.Module):
    """A model whose cached passes are wrong: the start-up check has to notice."""

    def __init__(self, inner: Any, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind
        self.config, self.generation_config = inner.config, inner.generation_config

    device = property(lambda self: self.inner.device)
    dtype = property(lambda self: self.inner.dtype)

    def tie_weights(self) -> None:
        pass

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
        use_cache: Any = None, logits_to_keep: Any = 0,
    ) -> Any:  # fmt: skip
        if self.kind == "generate_until" and past_key_values is not None:
            position_ids = None
            attention_mask = None
        output = self.inner(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, use_cache=use_cache, logits_to_keep=logits_to_keep,
        )  # fmt: skip
        if self.kind == "loglikelihood" and not isinstance(logits_to_keep, int):
            output.logits = output.logits.roll(1, 0)
        return output


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_the_start_up_check_notices_a_wrong_loop(tokenizer: Any, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    wrong = _IgnoresTheMask(tiny(), kind)
    scorer = PreparedScorer(wrong, tokenizer)
    requests = generations(prompts(6), until=["\n"], max_gen_toks=8)
    if kind == "loglikelihood":
        requests = likelihoods([(text, "abc") for text in prompts(6)])
    with caplog.at_level("WARNING", logger="evomerge.evaluation.engine_choice"):
        [prepared] = scorer.prepare([[request] for request in requests])
    assert prepared.engine == "lm_eval"
    assert f"{kind}: engine packed does not suit this model" in caplog.text
    assert "not packed: " in scorer.notes[kind]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_up_check_passes_right_loops(tokenizer: Any, dtype: torch.dtype) -> None:
    model = tiny(0).to(dtype)
    scorer = PreparedScorer(model, tokenizer)
    for requests in (
        generations(prompts(6), until=["\n"], max_gen_toks=8),
        likelihoods([(text, "abc") for text in prompts(6)]),
    ):
        [prepared] = scorer.prepare([[request] for request in requests])
        assert prepared.engine == "packed"
    assert scorer.notes == {"generate_until": "packed", "loglikelihood": "packed"}
