"""The exception tree. Everything a user can cause derives from UserError and is shown without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_PROBLEMS = 50
MAX_SHOWN = 600  # characters


class EvomergeError(Exception):
    """Root of all errors raised on purpose."""


class UserError(EvomergeError):
    """The user gave something that cannot work; the message says what, where and the likely fix. Exit code 1."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a user's file.

    Attributes:
        where: file and key, for example ``experiments/a.yaml: optimizer.sigma``.
        message: what was expected, what was found, and the likely fix.
    """

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class InvalidInput(UserError):
    """One or more problems in the user's files, all reported at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def few_problems(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """The first problems, each cut to a readable length, and how many more there are."""
    shown = [
        Problem(
            *(
                text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
                for text in (entry.where, entry.message)
            )
        )
        for entry in problems[:MAX_PROBLEMS]
    ]
    if len(problems) > MAX_PROBLEMS:
        shown.append(Problem("", f"and {len(problems) - MAX_PROBLEMS} more problems"))
    return tuple(shown)


class DataNotHere(InvalidInput):
    """Nothing is wrong with the files, but a data set they name is not on this machine and cannot be fetched now."""


class ResumeRefused(UserError):
    """The run cannot go on as it was: the experiment, its models or its tasks changed."""


class MergeFailed(EvomergeError):
    """A merge gave an unusable model (for example NaN weights); the candidate fails, the run goes on."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A closing sentence for an unknown word: the nearest known one, else the list of all known ones."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    return "Known: " + ", ".join(names) + "." if names else ""
