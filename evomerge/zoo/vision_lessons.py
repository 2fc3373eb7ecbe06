"""Handwritten digits for the vision zoo: 8x8 pixels of 0 to 16, out of scikit-learn, without a network.

The 1797 images are the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine
Learning Repository, CC BY 4.0). Two tasks, digits 0 to 4 and 5 to 9; a document is never trained on.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache

DOCUMENT_SEED = 2024
SPLIT_SIZES = {"search": 120, "validation": 100, "held_out": 200}
HALVES = {"digits_low": range(5), "digits_high": range(5, 10)}
MAX_PIXEL = 16


@dataclass(frozen=True)
class Digit:
    """One image.

    Attributes:
        index: its place in the data set.
        pixels: ``(8, 8)``, 0 to 16.
        label: the digit.
    """

    index: int
    pixels: tuple[tuple[int, ...], ...]
    label: int


@cache
def all_digits(half: str) -> tuple[Digit, ...]:
    """The images of one half of the digits in a fixed shuffled order; the first are the documents."""
    from sklearn.datasets import load_digits

    data = load_digits()
    digits = [
        Digit(index, tuple(tuple(int(value) for value in row) for row in image), int(label))
        for index, (image, label) in enumerate(zip(data.images, data.target, strict=True))
        if int(label) in HALVES[half]
    ]
    random.Random(f"{half}:{DOCUMENT_SEED}").shuffle(digits)
    return tuple(digits)


def training_digits(half: str) -> tuple[Digit, ...]:
    """Every image of a half that is no document."""
    return all_digits(half)[sum(SPLIT_SIZES.values()) :]


def document_files() -> dict[str, str]:
    """The documents as JSONL, by path below ``fitness/``."""
    made = {}
    for half in HALVES:
        start = 0
        for split, size in SPLIT_SIZES.items():
            digits = all_digits(half)[start : start + size]
            start += size
            lines = [
                json.dumps({"id": f"digit-{digit.index}", "label": digit.label, "pixels": digit.pixels})
                for digit in digits
            ]
            made[f"images/{half}.{split}.jsonl"] = "\n".join(lines) + "\n"
    return made
