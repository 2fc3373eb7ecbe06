"""The vision zoo must be a merging problem: each expert good at its half, in conflict, and images never trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.evaluation.image_accuracy import image_accuracy
from evomerge.evaluation.python_fitness import read_documents
from evomerge.zoo import micro_lessons, vision, vision_lessons
from evomerge.zoo.vision_lessons import HALVES

FITNESS = Path(__file__).resolve().parents[3] / "fitness"


def test_shipped_images_are_what_the_generator_makes() -> None:
    for name, text in vision_lessons.document_files().items():
        assert (FITNESS / name).read_bytes() == text.encode(), f"{name}: run scripts/make_zoo_tasks.py"


def test_no_image_is_trained_on_or_in_two_splits() -> None:
    for half in HALVES:
        documents = [
            document
            for split in vision_lessons.SPLIT_SIZES
            for document in read_documents(str(FITNESS / "images" / f"{half}.{split}.jsonl"))
        ]
        seen = {str(document["pixels"]) for document in documents}
        assert len(seen) == len(documents) == sum(vision_lessons.SPLIT_SIZES.values())
        trained = vision_lessons.training_digits(half)
        assert len(trained) > 400
        assert not seen & {str([list(row) for row in digit.pixels]) for digit in trained}


def test_experts_know_their_half_and_forget_the_other(vision_zoo: dict[str, Path]) -> None:
    from transformers import AutoModelForImageClassification

    def accuracy(name: str, half: str) -> float:
        model: Any = AutoModelForImageClassification.from_pretrained(vision_zoo[name]).eval()
        documents = read_documents(str(FITNESS / "images" / f"{half}.held_out.jsonl"))
        return sum(image_accuracy(model, None, documents, 0, batch_size=200)) / len(documents)

    for own, other in (("low", "high"), ("high", "low")):
        before = accuracy("digits-base", f"digits_{own}")
        assert accuracy(f"digits-{own}", f"digits_{own}") >= max(0.85, before + 0.05)
        assert accuracy(f"digits-{own}", f"digits_{other}") <= accuracy("digits-base", f"digits_{other}") - 0.2


def test_training_repeats_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vision.RUNS, "digits-base", vision.VisionRun(("digits_low",), 12, 1e-3, 1))
    reports: list[int] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        vision.build("digits-base", tmp_path / name, lambda step, *_: reports.append(step))
    assert reports == [10, 12] * 2
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_counting_ends_with_the_sum() -> None:
    assert micro_lessons.count_up("37+5") == "38 39 40 41 42"
    for question in micro_lessons.all_questions("count"):
        assert int(question.answer.split()[-1]) == sum(map(int, question.question.split("+")))
    documents = {question.question for question in micro_lessons.add_questions(micro_lessons.NUM_DOCUMENTS)}
    assert not documents & {question.question for question in micro_lessons.training_questions("count")}
