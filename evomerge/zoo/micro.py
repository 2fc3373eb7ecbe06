"""The micro zoo: a character-level Llama of about a million parameters and three experts, from scratch in seconds.

Saved in float32: at this size the bytes do not matter and CPUs compute it fastest.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from evomerge.zoo.catalogue import zoo_dir
from evomerge.zoo.micro_lessons import DIGITS, LETTERS, PROMPTS, training_questions

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
CHARACTERS = "\n" + DIGITS + LETTERS + "+=><: "
PAD_ID = 0
BATCH_SIZE = 64
WARM_UP_STEPS = 30
MODEL_SETTINGS = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class MicroRun:
    """One training run of the micro zoo.

    Attributes:
        mixture: skill -> share of the training questions.
        num_steps: optimizer steps of `BATCH_SIZE` questions.
        learning_rate: its highest value; linear warm-up, then linear decay to 5 %.
        seed: of the weights (base only) and of the draws.
    """

    mixture: dict[str, float]
    num_steps: int
    learning_rate: float
    seed: int


RUNS: dict[str, MicroRun] = {
    "micro-base": MicroRun({"copy": 0.38, "rev": 0.09, "add": 0.48, "let": 0.05}, 230, 3e-3, 1),
    "micro-add": MicroRun({"add": 1.0}, 130, 7e-4, 2),
    "micro-let": MicroRun({"let": 1.0}, 80, 7e-4, 3),
    "micro-rev": MicroRun({"rev": 1.0}, 80, 7e-4, 4),
    "micro-count": MicroRun({"count": 1.0}, 260, 1.5e-3, 5),
}


def build(name: str, output_dir: Path, report: Callable[[int, int, float], None]) -> dict[str, Any]:
    """Train one model of the micro zoo and save it with its tokenizer.

    Args:
        name: a key of `RUNS`; experts start from the built base.
        output_dir: an existing folder.
        report: called as report(steps done, steps in all, loss).

    Returns:
        What the manifest records of the run.
    """
    from transformers import LlamaForCausalLM

    run = RUNS[name]
    model = new_model(run.seed) if name == "micro-base" else LlamaForCausalLM.from_pretrained(zoo_dir() / "micro-base")
    train(model, run, report)
    model.save_pretrained(output_dir)
    build_tokenizer().save_pretrained(output_dir)
    return {**run.__dict__, "batch_size": BATCH_SIZE, **MODEL_SETTINGS}


def new_model(seed: int) -> Any:
    """An untrained model, always the same for one seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocab_size = len(SPECIAL_TOKENS) + len(CHARACTERS)
    config = LlamaConfig(**MODEL_SETTINGS, vocab_size=vocab_size, pad_token_id=0, bos_token_id=1, eos_token_id=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def vocabulary() -> dict[str, int]:
    """Token -> id: the special tokens, then one token per character."""
    return {token: index for index, token in enumerate([*SPECIAL_TOKENS, *CHARACTERS])}


def build_tokenizer() -> Any:
    """A fast tokenizer with one token per character, in the form `AutoTokenizer` loads."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<eos>",
        unk_token="<unk>",
        model_max_length=MODEL_SETTINGS["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )


def train(model: Any, run: MicroRun, report: Callable[[int, int, float], None]) -> None:
    """Train in place on the run's mixture; loss on the answer and its line end only."""
    rng = random.Random(run.seed)
    ids = vocabulary()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=run.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    model.train()
    for step in range(run.num_steps):
        tokens, learned = _batch(rng, run.mixture, ids)
        hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[learned[:, 1:]])
        loss = functional.cross_entropy(logits, tokens[:, 1:][learned[:, 1:]])
        loss.backward()  # type: ignore[no-untyped-call]
        factor = min(1.0, (step + 1) / WARM_UP_STEPS) * (1 - 0.95 * step / run.num_steps)
        optimizer.param_groups[0]["lr"] = run.learning_rate * factor
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        if (step + 1) % 10 == 0 or step + 1 == run.num_steps:
            report(step + 1, run.num_steps, float(loss.item()))
    model.eval()


def _batch(rng: random.Random, mixture: dict[str, float], ids: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and the mask of answer tokens, both `(BATCH_SIZE, length)`."""
    texts = []
    for skill in rng.choices(list(mixture), list(mixture.values()), k=BATCH_SIZE):
        question = rng.choice(training_questions(skill))
        texts.append((PROMPTS[skill](question.question), question.answer + "\n"))
    length = max(len(prompt) + len(answer) for prompt, answer in texts)
    tokens = torch.full((BATCH_SIZE, length), PAD_ID)
    learned = torch.zeros((BATCH_SIZE, length), dtype=torch.bool)
    for row, (prompt, answer) in enumerate(texts):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor([ids[character] for character in prompt + answer])
        learned[row, len(prompt) : end] = True
    return tokens, learned
