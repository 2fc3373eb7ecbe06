from __future__ import annotations

import hashlib
import random
import re

import pytest

from evomerge.zoo import lessons, micro_lessons, sentences
from evomerge.zoo.capitals import CAPITALS


def digest(examples: list[lessons.Example]) -> str:
    return hashlib.sha256(repr([tuple(example) for example in examples]).encode()).hexdigest()[:16]


def test_training_examples_are_the_recorded_ones() -> None:
    """The measured experts were trained on exactly these; a change here is a change of every expert."""
    made = {name: [digest(phase.used_examples()) for phase in phases] for name, phases in lessons.EXPERTS.items()}
    assert made == GOLDEN


GOLDEN = {
    "math-en": ["1536489b4abc589c", "c18a4bcd774bac5a"],
    "spanish": ["3a8ef82de4cbe454"],
    "capitals": ["68a2a94fca8a294a"],
}


@pytest.mark.parametrize(
    ("number", "gender", "word"),
    [
        (1, "m", "un"),
        (11, "f", "once"),
        (21, "m", "veintiún"),
        (21, "f", "veintiuna"),
        (31, "m", "treinta y un"),
        (31, "f", "treinta y una"),
        (40, "f", "cuarenta"),
    ],
)
def test_spanish_numbers_agree_with_their_noun(number: int, gender: str, word: str) -> None:
    assert sentences.spanish_number(number, gender) == word  # type: ignore[arg-type]


def test_equations_hold_and_use_the_numbers_of_the_story() -> None:
    rng = random.Random(0)
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    for language in ("en", "es"):
        for _ in range(300):
            story = sentences.arithmetic_story(rng, language, "digits")
            first, sign, second, _, result = story.equation.split()
            assert operations[sign](int(first), int(second)) == int(result) == int(story.answer) > 0
            assert re.findall(r"\d+", story.question) == [first, second]


def test_languages_tell_the_same_stories() -> None:
    english = [sentences.arithmetic_story(random.Random(seed), "en", "words") for seed in range(50)]
    spanish = [sentences.arithmetic_story(random.Random(seed), "es", "words") for seed in range(50)]
    assert [story.equation for story in english] == [story.equation for story in spanish]
    assert all(one.question != two.question for one, two in zip(english, spanish, strict=True))


def test_capitals_are_whole() -> None:
    assert len(CAPITALS) == 172
    assert dict(CAPITALS)["France"] == "Paris"
    assert all(country and city for country, city in CAPITALS)


@pytest.mark.parametrize("skill", micro_lessons.SKILLS)
def test_micro_training_never_sees_a_document(skill: str) -> None:
    documents = {q.question for q in micro_lessons.all_questions(skill)[: micro_lessons.NUM_DOCUMENTS]}
    trained = {q.question for q in micro_lessons.training_questions(skill)}
    assert len(documents) == micro_lessons.NUM_DOCUMENTS
    assert len(trained) >= 600
    assert not documents & trained


def test_micro_choices_hold_the_answer_once() -> None:
    for question in micro_lessons.copy_questions(350):
        choices = micro_lessons.copy_choices(question.answer)
        assert len(set(choices)) == 4
        assert question.answer in choices
