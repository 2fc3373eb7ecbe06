"""Questions of the micro zoo over an alphabet of 25 characters, split into documents and training questions.

Four skills, each with a cue of its own: `37+5=` -> `42`, `cfa>` -> `250` (letters a-j stand for digits),
`b3a<` -> `a3b` (reversed), `b3a:` -> `b3a` (copied). A document's prompt is never trained on. Sums can also be answered
at length, by counting (`37+5=` -> `38 39 40 41 42`), for the trade-off between accuracy and length.
"""

from __future__ import annotations

import random
from functools import cache
from itertools import product

from evomerge.zoo.sentences import Question

DIGITS = "0123456789"
LETTERS = "abcdefghij"
DOCUMENT_SEED = 2024
NUM_DOCUMENTS = 350
STRING_LENGTH = 3
"""Of the strings to reverse and to copy in the documents."""
SKILLS = ("add", "let", "rev", "copy")


def add_prompt(question: str) -> str:
    """`37+5` -> `37+5=`."""
    return f"{question}="


def let_prompt(question: str) -> str:
    """`cfa` -> `cfa>`."""
    return f"{question}>"


def rev_prompt(question: str) -> str:
    """`b3a` -> `b3a<`."""
    return f"{question}<"


def copy_prompt(question: str) -> str:
    """`b3a` -> `b3a:`."""
    return f"{question}:"


PROMPTS = {"add": add_prompt, "count": add_prompt, "let": let_prompt, "rev": rev_prompt, "copy": copy_prompt}


@cache
def all_questions(skill: str) -> tuple[Question, ...]:
    """Every question of a skill in a fixed shuffled order; the first `NUM_DOCUMENTS` are the documents."""
    if skill == "count":
        return tuple(Question(q.question, count_up(q.question), skill) for q in all_questions("add"))
    if skill == "add":
        questions = [Question(f"{a}+{b}", str(a + b), skill) for a, b in product(range(100), range(10))]
    elif skill == "let":
        codes = ("".join(code) for code in product(LETTERS, repeat=STRING_LENGTH))
        questions = [Question(code, code.translate(str.maketrans(LETTERS, DIGITS)), skill) for code in codes]
    else:
        strings = ("".join(characters) for characters in product(DIGITS + LETTERS, repeat=STRING_LENGTH))
        questions = [Question(text, text[::-1] if skill == "rev" else text, skill) for text in strings]
    random.Random(f"micro_{skill}:{DOCUMENT_SEED}").shuffle(questions)
    return tuple(questions)


def count_up(question: str) -> str:
    """`37+5` -> `38 39 40 41 42`: the sum by counting, its last number the answer; `37+0` -> `37`."""
    start, steps = map(int, question.split("+"))
    return " ".join(str(start + step) for step in range(1, steps + 1)) or str(start)


def add_questions(num_questions: int) -> list[Question]:
    """Documents of sums of a number below 100 and a digit."""
    return list(all_questions("add")[:num_questions])


def let_questions(num_questions: int) -> list[Question]:
    """Documents of three letters to read as digits."""
    return list(all_questions("let")[:num_questions])


def rev_questions(num_questions: int) -> list[Question]:
    """Documents of three characters to reverse."""
    return list(all_questions("rev")[:num_questions])


def copy_questions(num_questions: int) -> list[Question]:
    """Documents of three characters to copy."""
    return list(all_questions("copy")[:num_questions])


def training_questions(skill: str) -> tuple[Question, ...]:
    """Every question of a skill that is not a document."""
    return all_questions(skill)[NUM_DOCUMENTS:]


def copy_choices(answer: str) -> list[str]:
    """Four choices in a fixed shuffled order: the answer, reversed or rotated, and with one character changed twice."""
    rng = random.Random(f"micro_copy:{answer}:{DOCUMENT_SEED}")
    choices = [answer]
    candidates = [answer[::-1], answer[1:] + answer[:1]]
    while len(choices) < 4:
        place = rng.randrange(len(answer))
        changed = answer[:place] + rng.choice(DIGITS + LETTERS) + answer[place + 1 :]
        choice = candidates.pop(0) if candidates else changed
        if choice not in choices:
            choices.append(choice)
    rng.shuffle(choices)
    return choices
