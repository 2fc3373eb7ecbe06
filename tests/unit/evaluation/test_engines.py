"""Every engine gives lm-eval's answers on the architectures it accepts; the others fall down the ladder."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evomerge.evaluation.likelihood_pass import Block, PassSize
from evomerge.evaluation.lm_eval_scorer import BLOCK_DOCUMENTS, PreparedScorer
from evomerge.evaluation.request_plans import as_document, plan_loglikelihood, run_loglikelihood
from tests.unit.evaluation.asking import generations, likelihoods, prompts
from tests.unit.evaluation.conftest import tiny_model

CPU = torch.device("cpu")
SHOTS = "Q: one and two\nA: three, of course\n\n"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied head": ("llama", {"tie_word_embeddings": True}),
    "qwen3, head of its own": ("qwen3", {"tie_word_embeddings": False}),
    "mixtral, routed experts": ("mixtral", {"num_local_experts": 4}),
    "gpt2, learned positions": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "gemma2, soft caps": ("gemma2", {"sliding_window": 512}),
    "phi3, fused projections": ("phi3", {}),
    "mistral, short window": ("mistral", {"sliding_window": 24}),
    "gemma3, short window": (
        "gemma3_text",
        {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "bloom, ALiBi": ("bloom", {"n_head": 4, "n_layer": 2}),
}
EXPECTED = {"mistral, short window": "two_stage", "gemma3, short window": "two_stage", "bloom, ALiBi": "two_stage"}


def model_of(name: str, tokenizer: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind, changes = MODELS[name]
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 1}
    if kind not in ("gpt2", "bloom"):
        sizes |= {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 256,
        }  # fmt: skip
        sizes |= {} if kind in ("phi3", "mixtral") else {"head_dim": 8}
    else:
        sizes |= {} if kind == "gpt2" else {"hidden_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes, **changes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 0.3)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_engines_give_lm_evals_answers(name: str, tokenizer: Any) -> None:
    model = model_of(name, tokenizer)
    scorer = PreparedScorer(model, tokenizer)
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    pairs = likelihoods(
        [(shots + text, end) for shots in (SHOTS, "") for text in prompts(7) for end in ("a", "bc", "b")]
    )
    texts = [Instance("loglikelihood_rolling", {}, (text * 9,), 0, ("task", 0, 1)) for text in prompts(5)]
    asked = generations([SHOTS + text for text in prompts(7)], until=["a", "\n"], max_gen_toks=9)
    theirs = stock.loglikelihood(pairs, disable_tqdm=True)
    ours = scorer.loglikelihood(pairs)
    assert [total for total, _ in ours] == pytest.approx([total for total, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    rolling = stock.loglikelihood_rolling(texts, disable_tqdm=True)
    assert scorer.loglikelihood_rolling(texts) == pytest.approx(rolling, rel=1e-6, abs=1e-4)
    assert scorer.generate_until(asked) == stock.generate_until(asked, disable_tqdm=True)
    expected = EXPECTED.get(name, "packed")
    engines = {kind: note.partition(" ")[0] for kind, note in scorer.notes.items()}
    assert engines == {
        "loglikelihood": expected,
        "loglikelihood_rolling": "head_skip",
        "generate_until": "packed" if expected == "packed" else "lm_eval",
    }


def drawn_blocks(rng: random.Random, num_documents: int, shared: int) -> list[list[tuple[list[int], list[int]]]]:
    """Documents of random tokens; choices sometimes share their first tokens, and contexts are sometimes equal."""
    beginning = [rng.randrange(2, 80) for _ in range(shared)]
    documents: list[list[tuple[list[int], list[int]]]] = []
    for _ in range(num_documents):
        context = beginning + [rng.randrange(2, 80) for _ in range(rng.randint(1, 20))]
        if documents and rng.random() < 0.2:
            context = rng.choice(documents)[0][0]
        stem = [rng.randrange(2, 80) for _ in range(rng.randint(0, 2))]
        ends = [stem + [rng.randrange(2, 80) for _ in range(rng.randint(1, 4))] for _ in range(rng.randint(1, 4))]
        documents.append([(context, end) for end in ends])
    return documents


def laid_out(documents: list[list[tuple[list[int], list[int]]]], max_length: int = 512) -> Block:
    block, count = [], 0
    for document in documents:
        block.append(as_document(document, count, max_length))
        count += len(document)
    return tuple(block)


@pytest.mark.parametrize("engine", ["packed", "two_stage", "head_skip"])
def test_order_neighbours_and_sizes_change_no_score(engine: str, model: Any) -> None:
    rng = random.Random(3)
    for shared in (0, 5, 40):
        documents = drawn_blocks(rng, 12, shared)
        alone = [
            run_loglikelihood(model, plan_loglikelihood([laid_out([document])], "head_skip", PassSize(1, 2**20), CPU))
            for document in documents
        ]
        for size in (PassSize(64, 1024), PassSize(3, 64, 64, 64), PassSize(1, 2**20, 32, 16)):
            order = rng.sample(range(len(documents)), len(documents))
            plan = plan_loglikelihood([laid_out([documents[number] for number in order])], engine, size, CPU)
            found = iter(run_loglikelihood(model, plan))
            for number in order:
                mine = [next(found) for _ in documents[number]]
                assert [total for total, _ in mine] == pytest.approx([total for total, _ in alone[number]], abs=2e-5)
                assert [greedy for _, greedy in mine] == [greedy for _, greedy in alone[number]]


@pytest.mark.parametrize("engine", ["packed", "two_stage", "head_skip"])
def test_later_documents_change_no_bit_of_earlier_blocks(engine: str, model: Any) -> None:
    """Racing adds blocks: what was scored before must stay what it was."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    rng = random.Random(5)
    documents = drawn_blocks(rng, 24, 30)
    more = documents + drawn_blocks(rng, 12, 0)
    whole = laid_out(more)
    few, many = (
        run_loglikelihood(half, plan_loglikelihood(blocks, engine, PassSize(64, 1024), CPU))
        for blocks in ([whole[:12], whole[12:24]], [whole[:12], whole[12:24], whole[24:]])
    )
    assert many[: len(few)] == few


def test_blocks_end_with_their_task_and_hold_so_many_documents(model: Any, tokenizer: Any) -> None:
    scorer = PreparedScorer(model, tokenizer)
    groups = [
        [
            Instance("loglikelihood", {}, (f"{SHOTS}{number}", end), place, (task, number, 1))
            for place, end in enumerate("ab")
        ]
        for task, count in (("first", BLOCK_DOCUMENTS + 3), ("second", 5))
        for number in range(count)
    ]
    [prepared] = scorer.prepare(groups)
    assert prepared.loglikelihood is not None
    owners = [
        sorted({owner for one in block for owner in one.reading.owners}) for block in prepared.loglikelihood.blocks
    ]
    assert [len(mine) for mine in owners] == [2 * BLOCK_DOCUMENTS, 6, 10]
    assert [owner for mine in owners for owner in mine] == list(range(len(prepared.requests)))


class _HidesItsWindow(torch.nn.Module):
    """A model that says nothing of the short attention window it has."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.config, self.generation_config = copy.deepcopy(inner.config), inner.generation_config
        self.config.sliding_window = self.config.layer_types = None

    device = property(lambda self: self.inner.device)
    dtype = property(lambda self: self.inner.dtype)

    def tie_weights(self) -> None:
        pass

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
        use_cache: Any = None, logits_to_keep: Any = 0,
    ) -> Any:  # fmt: skip
        return self.inner(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, use_cache=use_cache, logits_to_keep=logits_to_keep,
        )  # fmt: skip


def test_a_window_that_the_configuration_hides_is_found_at_start_up(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the longest document is longer than the window."""
    hiding = _HidesItsWindow(model_of("mistral, short window", tokenizer))
    scorer = PreparedScorer(hiding, tokenizer)
    pairs = [(text, end) for text in [*(prompt[-9:] for prompt in prompts(5)), SHOTS * 2] for end in ("ab", "cd")]
    with caplog.at_level("WARNING", logger="evomerge.evaluation.engine_choice"):
        ours = scorer.loglikelihood(likelihoods(pairs))
    assert "loglikelihood: engine packed does not suit this model: log-probabilities differ by" in caplog.text
    assert scorer.notes["loglikelihood"].startswith("two_stage (not packed: log-probabilities differ by")
    stock = HFLM(pretrained=hiding.inner, tokenizer=tokenizer, batch_size=1)
    theirs = stock.loglikelihood(likelihoods(pairs), disable_tqdm=True)
    assert [total for total, _ in ours] == pytest.approx([total for total, _ in theirs], abs=1e-4)


def test_the_output_head_computes_in_float32(tokenizer: Any) -> None:
    """In bfloat16 the logits themselves tie; the hidden states before them do not."""
    half = tiny_model(0).to(torch.bfloat16)
    pairs = likelihoods([(text, choice) for text in prompts(20) for choice in "abcdefghijklmnopqrstuvwxyz"])
    ours = PreparedScorer(half, tokenizer).loglikelihood(pairs)
    stock = HFLM(pretrained=half, tokenizer=tokenizer, batch_size=8, softmax_dtype="float32")
    theirs = stock.loglikelihood(pairs, disable_tqdm=True)
    ties = [
        len(pairs) - len({(pair.args[0], total) for pair, (total, _) in zip(pairs, found)}) for found in (ours, theirs)
    ]
    assert ties[0] == 0
    assert ties[1] > 5
    assert [total for total, _ in ours] == pytest.approx([total for total, _ in theirs], abs=0.15)
