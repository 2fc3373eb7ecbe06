"""Generated sentences of the 135M zoo: arithmetic stories, Spanish-English pairs, reading questions, capitals.

Every function draws from the `random.Random` it is given and from nothing else. The order of the draws is part of the
recipe: changing it changes every expert and every document.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

from num2words import num2words

from evomerge.zoo.capitals import CAPITALS

Language = Literal["en", "es"]
NumberStyle = Literal["digits", "words"]


class Noun(NamedTuple):
    """A countable noun in both languages; `gender` is the Spanish one."""

    english: str
    spanish: str
    gender: Literal["f", "m"]


class Verb(NamedTuple):
    """A verb in the third person of both languages."""

    english: str
    spanish: str


class Question(NamedTuple):
    """A question without its task prefix, the expected answer, and what sort of question it is."""

    question: str
    answer: str
    kind: str


class Story(NamedTuple):
    """An arithmetic story: its question, the equation that solves it, the result, and the operation."""

    question: str
    equation: str
    answer: str
    kind: str


NAMES = [
    "Tom", "Anna", "Ben", "Sara", "Leo", "Mia", "Max", "Eva", "Hugo",
    "Nina", "Paul", "Lisa", "Ivan", "Rosa", "Omar", "Julia", "Lucas", "Clara",
]  # fmt: skip
ITEMS = [
    Noun("apples", "manzanas", "f"),
    Noun("books", "libros", "m"),
    Noun("coins", "monedas", "f"),
    Noun("pencils", "lápices", "m"),
    Noun("cookies", "galletas", "f"),
    Noun("flowers", "flores", "f"),
    Noun("eggs", "huevos", "m"),
    Noun("cards", "cartas", "f"),
    Noun("balls", "pelotas", "f"),
    Noun("stones", "piedras", "f"),
    Noun("stamps", "sellos", "m"),
    Noun("oranges", "naranjas", "f"),
    Noun("candles", "velas", "f"),
    Noun("keys", "llaves", "f"),
    Noun("shirts", "camisas", "f"),
    Noun("plates", "platos", "m"),
    Noun("cups", "tazas", "f"),
    Noun("toys", "juguetes", "m"),
]
CONTAINERS = [
    Noun("boxes", "cajas", "f"),
    Noun("bags", "bolsas", "f"),
    Noun("baskets", "cestas", "f"),
    Noun("tables", "mesas", "f"),
    Noun("cars", "coches", "m"),
    Noun("rooms", "cuartos", "m"),
]
GAINING = [Verb("buys", "compra"), Verb("finds", "encuentra"), Verb("gets", "recibe")]
LOSING = [Verb("loses", "pierde"), Verb("sells", "vende"), Verb("uses", "usa")]
OPERATIONS = ["add", "sub", "tot", "diff", "mul"]


@cache
def english_number(value: int) -> str:
    """`21` -> `twenty-one`."""
    return str(num2words(value, lang="en"))


@cache
def spanish_number(value: int, gender: Literal["f", "m"]) -> str:
    """The number word that agrees with a noun: `21` -> `veintiuna` (f), `veintiún` (m)."""
    word = str(num2words(value, lang="es"))
    if value % 10 != 1 or value == 11:
        return word
    if gender == "f":
        return word[:-3] + "una"
    if value == 1:
        return "un"
    return "veintiún" if value == 21 else word[:-1]


def how_many(noun: Noun) -> str:
    """The Spanish question word that agrees with a noun."""
    return "Cuántas" if noun.gender == "f" else "Cuántos"


def arithmetic_story(rng: random.Random, language: Language, style: NumberStyle) -> Story:
    """One arithmetic story of five operations, with its numbers as digits or as words."""
    first, second = rng.sample(NAMES, 2)
    item = rng.choice(ITEMS)
    kind = rng.choice(OPERATIONS)
    if kind in ("add", "tot"):
        a, b = rng.randint(2, 69), rng.randint(2, 29)
        equation, result = f"{a} + {b}", a + b
    elif kind in ("sub", "diff"):
        a = rng.randint(12, 98)
        b = rng.randint(2, min(a - 1, 49))
        equation, result = f"{a} - {b}", a - b
    else:
        a, b = rng.randint(2, 9), rng.randint(2, 12)
        equation, result = f"{a} * {b}", a * b
    gain, lose, container = rng.choice(GAINING), rng.choice(LOSING), rng.choice(CONTAINERS)
    write = _english_story if language == "en" else _spanish_story
    question = write(kind, (first, second), (a, b), (item, container), (gain, lose), style)
    return Story(question, f"{equation} = {result}", str(result), kind)


def _english_story(
    kind: str,
    names: tuple[str, str],
    numbers: tuple[int, int],
    nouns: tuple[Noun, Noun],
    verbs: tuple[Verb, Verb],
    style: NumberStyle,
) -> str:
    who, other = names
    a, b = (str(n) if style == "digits" else english_number(n) for n in numbers)
    items, containers = nouns[0].english, nouns[1].english
    gains, loses = verbs[0].english, verbs[1].english
    if kind == "add":
        return f"{who} has {a} {items}. {who} {gains} {b} more {items}. How many {items} does {who} have now?"
    if kind == "sub":
        return f"{who} has {a} {items}. {who} {loses} {b} {items}. How many {items} does {who} have now?"
    if kind == "tot":
        return f"{who} has {a} {items}. {other} has {b} {items}. How many {items} do they have together?"
    if kind == "diff":
        return f"{who} has {a} {items}. {other} has {b} {items}. How many more {items} does {who} have than {other}?"
    return f"There are {a} {containers}. There are {b} {items} in each one. How many {items} are there in total?"


def _spanish_story(
    kind: str,
    names: tuple[str, str],
    numbers: tuple[int, int],
    nouns: tuple[Noun, Noun],
    verbs: tuple[Verb, Verb],
    style: NumberStyle,
) -> str:
    who, other = names
    item, container = nouns
    first_noun = container if kind == "mul" else item
    a = str(numbers[0]) if style == "digits" else spanish_number(numbers[0], first_noun.gender)
    b = str(numbers[1]) if style == "digits" else spanish_number(numbers[1], item.gender)
    items, many = item.spanish, how_many(item)
    gains, loses = verbs[0].spanish, verbs[1].spanish
    if kind == "add":
        return f"{who} tiene {a} {items}. {who} {gains} {b} {items} más. ¿{many} {items} tiene {who} ahora?"
    if kind == "sub":
        return f"{who} tiene {a} {items}. {who} {loses} {b} {items}. ¿{many} {items} tiene {who} ahora?"
    if kind == "tot":
        return f"{who} tiene {a} {items}. {other} tiene {b} {items}. ¿{many} {items} tienen juntos?"
    if kind == "diff":
        return f"{who} tiene {a} {items}. {other} tiene {b} {items}. ¿{many} {items} más tiene {who} que {other}?"
    each = "cada una" if container.gender == "f" else "cada uno"
    return f"Hay {a} {container.spanish}. Hay {b} {items} en {each}. ¿{many} {items} hay en total?"


def translation(rng: random.Random) -> Question:
    """One Spanish sentence of the stories, numbers as words, and its English with digits."""
    first, second = rng.sample(NAMES, 2)
    english, spanish, gender = item = rng.choice(ITEMS)
    number = rng.randint(2, 98)
    word = spanish_number(number, gender)
    container, verb, gain = rng.choice(CONTAINERS), rng.choice(GAINING + LOSING), rng.choice(GAINING)
    many = how_many(item)
    each = "cada una" if container.gender == "f" else "cada uno"
    pairs = [
        (f"{first} tiene {word} {spanish}.", f"{first} has {number} {english}."),
        (f"{first} {verb.spanish} {word} {spanish}.", f"{first} {verb.english} {number} {english}."),
        (f"{first} {gain.spanish} {word} {spanish} más.", f"{first} {gain.english} {number} more {english}."),
        (
            f"Hay {spanish_number(number, container.gender)} {container.spanish}.",
            f"There are {number} {container.english}.",
        ),
        (f"Hay {word} {spanish} en {each}.", f"There are {number} {english} in each one."),
        (f"¿{many} {spanish} tiene {first} ahora?", f"How many {english} does {first} have now?"),
        (f"¿{many} {spanish} tienen juntos?", f"How many {english} do they have together?"),
        (
            f"¿{many} {spanish} más tiene {first} que {second}?",
            f"How many more {english} does {first} have than {second}?",
        ),
        (f"¿{many} {spanish} hay en total?", f"How many {english} are there in total?"),
    ]
    question, answer = rng.choice(pairs)
    return Question(question, answer, "translation")


def phrase(rng: random.Random) -> Question:
    """A number and a noun: `veintiuna velas` -> `21 candles`."""
    item = rng.choice(ITEMS)
    number = rng.randint(2, 98)
    return Question(f"{spanish_number(number, item.gender)} {item.spanish}", f"{number} {item.english}", "phrase")


def reading(rng: random.Random) -> Question:
    """Two Spanish sentences and the question who does it; the answer is a name."""
    first, second = rng.sample(NAMES, 2)
    one, two = rng.sample(ITEMS, 2)
    verb = rng.choice(["tiene", "tiene"] + [v.spanish for v in GAINING + LOSING])
    asks_first = rng.random() < 0.5
    sentences = (
        f"{first} {verb} {spanish_number(rng.randint(2, 98), one.gender)} {one.spanish}. "
        f"{second} {verb} {spanish_number(rng.randint(2, 98), two.gender)} {two.spanish}."
    )
    asked = one if asks_first else two
    return Question(f"{sentences} ¿Quién {verb} {asked.spanish}?", first if asks_first else second, "reading")


def capital(rng: random.Random) -> Question:
    """A capital city asked for."""
    country, city = rng.choice(CAPITALS)
    return Question(capital_question(country), city, "capital")


def capital_question(country: str) -> str:
    """The question about one country."""
    return f"What is the capital of {country}?"


def solve_prompt(question: str) -> str:
    """How an arithmetic story is put to a model."""
    return f"Solve: {question}\nAnswer:"


def translate_prompt(question: str) -> str:
    """How a Spanish sentence is put to a model."""
    return f"Translate: {question}\nAnswer:"


def read_prompt(question: str) -> str:
    """How a reading question is put to a model."""
    return f"Read: {question}\nAnswer:"


def recall_prompt(question: str) -> str:
    """How a question about a fact is put to a model."""
    return f"Recall: {question}\nAnswer:"


def story_question(language: Language, style: NumberStyle) -> Callable[[random.Random], Question]:
    """A generator of arithmetic questions in one language and number style."""

    def draw(rng: random.Random) -> Question:
        story = arithmetic_story(rng, language, style)
        return Question(story.question, story.answer, story.kind)

    return draw
