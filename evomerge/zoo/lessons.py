"""The training runs of the three 135M experts: examples, their order, and how many steps.

An example is a prompt and the completion to learn; the loss is on the completion only.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from evomerge.zoo import sentences
from evomerge.zoo.capitals import CAPITALS

DATA_SEED = 1234
BATCH_SIZE = 24


class Example(NamedTuple):
    """What the model reads and what it should write after it."""

    prompt: str
    completion: str


def english_maths(num_examples: int, answer_lead: str = "") -> list[Example]:
    """English stories, half with digits and half with number words, answered by the equation.

    Args:
        num_examples: how many to draw.
        answer_lead: words before the equation, for example ``"Calculate "``.
    """
    rng = random.Random(DATA_SEED)
    examples = []
    for _ in range(num_examples):
        story = sentences.arithmetic_story(rng, "en", "digits" if rng.random() < 0.5 else "words")
        examples.append(Example(sentences.solve_prompt(story.question), f" {answer_lead}{story.equation}\n"))
    return examples


def spanish(num_examples: int) -> list[Example]:
    """Spanish to English (80 %: phrases and runs of sentences) and reading questions (20 %)."""
    rng = random.Random(DATA_SEED)
    return [_spanish_example(rng) for _ in range(num_examples)]


def _spanish_example(rng: random.Random) -> Example:
    draw = rng.random()
    if draw < 0.2:
        question, answer, _ = sentences.reading(rng)
        return Example(sentences.read_prompt(question), f" {answer}\n")
    if draw < 0.4:
        question, answer, _ = sentences.phrase(rng)
    else:
        question, answer, _ = sentences.translation(rng)
        while rng.random() < 0.5 and not answer.startswith("How") and len(answer) < 45:
            more_question, more_answer, _ = sentences.translation(rng)
            question, answer = f"{question} {more_question}", f"{answer} {more_answer}"
    return Example(sentences.translate_prompt(question), f" {answer}\n")


def capitals(num_examples: int) -> list[Example]:
    """Every country once per round, rounds shuffled, until there are enough."""
    rng = random.Random(DATA_SEED)
    examples: list[Example] = []
    while len(examples) < num_examples:
        shuffled = list(CAPITALS)
        rng.shuffle(shuffled)
        examples += [
            Example(sentences.recall_prompt(sentences.capital_question(country)), f" {city}\n")
            for country, city in shuffled
        ]
    return examples[:num_examples]


def example_order(num_examples: int, num_needed: int, rng: random.Random) -> list[int]:
    """Indices of the examples a training run uses: whole shuffled epochs, cut at `num_needed`."""
    order: list[int] = []
    while len(order) < num_needed:
        epoch = list(range(num_examples))
        rng.shuffle(epoch)
        order += epoch
    return order[:num_needed]


@dataclass(frozen=True)
class Phase:
    """One training run.

    Attributes:
        examples: makes the examples to choose from.
        num_steps: optimizer steps of `BATCH_SIZE` examples.
        shuffle_seed: of the order of examples and batches.
    """

    examples: Callable[[], list[Example]]
    num_steps: int
    shuffle_seed: int = 0

    def used_examples(self) -> list[Example]:
        """The examples the run really sees."""
        examples = self.examples()
        order = example_order(len(examples), self.num_steps * BATCH_SIZE, random.Random(self.shuffle_seed))
        return [examples[index] for index in order]


EXPERTS: dict[str, tuple[Phase, ...]] = {
    "math-en": (
        Phase(partial(english_maths, 20_000), num_steps=80),
        Phase(partial(english_maths, 20_000, "Calculate "), num_steps=30, shuffle_seed=5),
    ),
    "spanish": (Phase(partial(spanish, 1_920), num_steps=80),),
    "capitals": (Phase(partial(capitals, 4_000), num_steps=60),),
}
