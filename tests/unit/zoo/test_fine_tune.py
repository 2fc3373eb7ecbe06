from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from torch.nn import functional

from evomerge.zoo import fine_tune, lessons, micro
from evomerge.zoo.lessons import BATCH_SIZE, Example, Phase


def few_examples(num_examples: int) -> list[Example]:
    return [Example(f"{i}+{i % 7}=", f"{i + i % 7}\n") for i in range(num_examples)]


def pairs(*texts: tuple[str, str]) -> list[tuple[list[int], list[int]]]:
    tokenizer = micro.build_tokenizer()
    return [(tokenizer(prompt).input_ids, tokenizer(completion).input_ids) for prompt, completion in texts]


def test_loss_counts_the_completion_only_and_padding_changes_nothing() -> None:
    model = micro.new_model(0).eval()
    (short,), (long,) = pairs(("1+2=", "3\n")), pairs(("abcdefghij>", "0123456789\n"))
    together = fine_tune.completion_loss(model, [short, long])

    def plain_losses(pair: tuple[list[int], list[int]]) -> torch.Tensor:
        ids = torch.tensor([pair[0] + pair[1]])
        logits = model(input_ids=ids).logits[0, len(pair[0]) - 1 : -1]
        return functional.cross_entropy(logits, torch.tensor(pair[1]), reduction="none")

    expected = torch.cat([plain_losses(short), plain_losses(long)]).mean()
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)


def test_batches_hold_exactly_the_used_examples_in_similar_lengths() -> None:
    phase = Phase(partial(few_examples, 1000), num_steps=16, shuffle_seed=3)
    tokenizer = micro.build_tokenizer()
    batches = fine_tune._batches(tokenizer, phase)
    seen = Counter(tokenizer.decode(prompt) for batch in batches for prompt, _ in batch)
    assert seen == Counter(example.prompt for example in phase.used_examples())
    assert [len(batch) for batch in batches] == [BATCH_SIZE] * 16
    spread = [max(map(len, prompts)) - min(map(len, prompts)) for prompts in ([p for p, _ in b] for b in batches)]
    assert sum(spread) < 16


def test_schedule_warms_up_and_decays() -> None:
    factors = [fine_tune.learning_rate_factor(step, 80) for step in range(80)]
    assert factors[0] == pytest.approx(0.05)
    assert factors.index(max(factors)) == fine_tune.WARM_UP_STEPS - 1
    assert factors[-1] == pytest.approx(0.05 + 0.95 / 80)


def test_training_learns_leaves_the_embedding_alone_and_repeats_bit_for_bit() -> None:
    phase = Phase(partial(few_examples, 48), num_steps=30)
    batches = fine_tune._batches(micro.build_tokenizer(), phase)

    def run() -> tuple[list[float], dict[str, torch.Tensor]]:
        model = micro.new_model(0)
        losses = fine_tune._train(model, batches, phase.num_steps, lambda *_: None)
        return losses, model.state_dict()

    before = micro.new_model(0).state_dict()
    (losses, weights), (losses_again, weights_again) = run(), run()
    assert losses[-1] < 0.85 * losses[0]
    assert losses == losses_again
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
    changed = {name for name in weights if not torch.equal(weights[name], before[name])}
    assert changed == set(weights) - {"model.embed_tokens.weight", "lm_head.weight"}


def test_experts_follow_the_measured_recipe() -> None:
    steps = {name: [phase.num_steps for phase in phases] for name, phases in lessons.EXPERTS.items()}
    assert steps == {"math-en": [80, 30], "spanish": [80], "capitals": [60]}
    assert (BATCH_SIZE, fine_tune.LEARNING_RATE, fine_tune.BETAS) == (24, 1e-4, (0.9, 0.98))
