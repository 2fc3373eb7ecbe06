"""Documents and scoring of the Japanese GSM8K task."""

import re
import unicodedata

import datasets

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def load_documents(search, held_out, held_out_config, **_):
    """The two published datasets as splits ``search`` and ``held_out``, each document with an id."""
    parts = {
        "search": datasets.load_dataset(search, split="test"),
        "held_out": datasets.load_dataset(held_out, held_out_config, split="test"),
    }
    return {
        name: part.select_columns(["question", "answer_number"]).add_column(
            "id", [f"gsm8k-ja-{name}-{index}" for index in range(len(part))]
        )
        for name, part in parts.items()
    }


def last_number(text):
    """The last number of a text, thousands separators removed; None when there is none."""
    matches = NUMBER.findall(unicodedata.normalize("NFKC", text))
    return float(matches[-1].replace(",", "")) if matches else None


def is_japanese(text):
    """Whether at least half of the letters are kana or kanji and some are kana.

    The paper asks a fastText language model for more than 0.5 Japanese; this needs no download.
    """
    letters = [char for char in text if char.isalpha()]
    kana = sum("\u3040" <= char <= "\u30ff" for char in letters)
    kanji = sum("\u4e00" <= char <= "\u9fff" for char in letters)
    return bool(letters) and kana > 0 and kana + kanji >= len(letters) / 2


def process_results(doc, results):
    """``acc``: the last number is right; ``acc_ja``: and the answer is in Japanese."""
    right = last_number(results[0]) == float(doc["answer_number"])
    return {"acc": float(right), "acc_ja": float(right and is_japanese(results[0]))}
