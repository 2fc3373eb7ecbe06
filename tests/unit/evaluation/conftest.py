"""A tiny random Llama with a character tokenizer, and a folder of small lm-eval tasks of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

CHARACTERS = "\n !\"#'()*+,-./0123456789:;<=>?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_|"
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def tiny_tokenizer() -> Any:
    """One token a character, with an end token that pads too."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<eos>": 1, **{char: 2 + index for index, char in enumerate(CHARACTERS)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_model(seed: int = 0, **changes: Any) -> Any:
    """A random two-block Llama of 90 tokens, in float32, with weights large enough to have opinions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": 2 + len(CHARACTERS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "eos_token_id": 1,
        "bos_token_id": None, "pad_token_id": 1, "tie_word_embeddings": True,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0.0, 0.4)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def model() -> Any:
    return tiny_model()


def question(index: int) -> dict[str, Any]:
    left, right = index % 7 + 1, index % 5 + 2
    choices = [str(left + right + shift) for shift in (0, 1, 10, 3)]
    turned = choices[index % 4 :] + choices[: index % 4]
    return {
        "id": f"q{index}",
        "question": f"{left} plus {right} for {'ABCDEFGH'[index % 8]}{index}",
        "answer": str(left + right),
        "choices": turned,
        "label": turned.index(str(left + right)),
        "text": f"The sum of {left} and {right}\nis {left + right}, says number {index}. " * (1 + index % 3),
    }


BASE: dict[str, Any] = {
    "dataset_path": "json",
    "training_split": "train",
    "validation_split": "validation",
    "test_split": "test",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_target": "{{answer}}",
    "metadata": {"version": 1.0},
}
GENERATE = {
    "output_type": "generate_until",
    "generation_kwargs": {"until": ["\n", "4"], "max_gen_toks": 12, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
CHOOSE = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "label",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True},
        {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
    ],
}
# Scores that every character of an answer changes, so that equal scores mean equal texts.
SCORING = """
def process_results(doc, results):
    text = results[0]
    letters = sum(ord(letter) / (place + 1) for place, letter in enumerate(text))
    return {"length": len(text), "early_letters": letters + len(doc["answer"])}
"""
SCORING_TAG = "!function scoring.process_results"
TASKS: dict[str, dict[str, Any]] = {
    "tiny_generate": GENERATE,
    "tiny_filters": {
        **GENERATE,
        "generation_kwargs": {"until": ["\n\n", "\nQ"], "max_gen_toks": 20, "do_sample": False},
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
            {"metric": "chrf", "aggregation": "chrf", "higher_is_better": True},
        ],
        "filter_list": [
            {"name": "first", "filter": [{"function": "take_first"}]},
            {
                "name": "letters",
                "filter": [
                    {"function": "regex", "regex_pattern": "([a-z]+)", "group_select": -1},
                    {"function": "take_first"},
                ],
            },
        ],
    },
    "tiny_code": {
        **GENERATE,
        "process_results": "!function scoring.process_results",
        "metric_list": [
            {"metric": "length", "aggregation": "mean", "higher_is_better": False},
            {"metric": "early_letters", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "tiny_choose": CHOOSE,
    "tiny_letters": {**CHOOSE, "tag": "tiny_tag", "doc_to_choice": ["A", "B", "C", "D"]},
    "tiny_likelihood": {
        "output_type": "loglikelihood",
        "doc_to_target": " {{answer}}.",
        "tag": "tiny_tag",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "tiny_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    },
}


@pytest.fixture(scope="session")
def task_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small tasks: 24 train, 10 validation, 12 test documents; one group of two, one tag of two."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data").mkdir()
    for split, numbers in {"train": range(24), "validation": range(100, 110), "test": range(200, 212)}.items():
        lines = [json.dumps(question(number)) for number in numbers]
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    files = {split: f"data/{split}.jsonl" for split in ("train", "validation", "test")}
    for name, task in TASKS.items():
        config = {"task": name, **BASE, "dataset_kwargs": {"data_files": files}, **task}
        text = yaml.safe_dump(config)
        (folder / f"{name}.yaml").write_text(text.replace("'!function scoring.process_results'", SCORING_TAG))
    (folder / "scoring.py").write_text(SCORING)
    group = {
        "group": "tiny_group",
        "task": ["tiny_choose", {"task": "tiny_letters", "num_fewshot": 2}],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (folder / "tiny_group.yaml").write_text(yaml.safe_dump(group))
    return folder
