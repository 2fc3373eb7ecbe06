"""An engine outside this process that generates text with the candidate's weights."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol


class TextEngine(Protocol):
    """Generates greedily; the weights are the last recipe's.

    Attributes:
        label: its name and version, for people and records.
        max_length: longest prompt with its answer, in tokens; None = what the model takes.
        seconds: time spent generating so far.
    """

    label: str
    max_length: int | None
    seconds: float

    def generate(
        self, prompts: Sequence[Sequence[int]], stops: Sequence[str], ends: Sequence[int], max_new_tokens: Sequence[int]
    ) -> list[list[int]]:
        """New tokens of each prompt, up to and including what ended it.

        Args:
            prompts: token ids.
            stops: strings that end an answer.
            ends: tokens that end an answer.
            max_new_tokens: longest answer of each prompt.

        Raises:
            WorkerBroken: the engine is lost.
        """
        ...


class EngineClock:
    """What an engine spent generating while the context lasts."""

    def __init__(self, engine: TextEngine) -> None:
        self.seconds = 0.0
        self._engine, self._before = engine, engine.seconds

    def __enter__(self) -> EngineClock:
        self._before = self._engine.seconds
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = self._engine.seconds - self._before


def safe_stops(stops: Sequence[str]) -> list[str]:
    """The stop strings at which an engine may end an answer without changing what is kept of it.

    A string inside another one, neither at its beginning nor at its end, would end an answer before the longer one,
    which begins earlier and cuts more, could show.
    """
    given = [stop for stop in stops if stop]
    return [stop for stop in given if not any(stop in other[1:-1] for other in given if other != stop)]
