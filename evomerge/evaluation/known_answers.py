"""What is known of one merged model's answers: looked up before anything is merged, kept once everything is scored.

Kept are a model's raw answers (log-probabilities, texts), request by request, in parts: the documents of one fitness
that are scored together. Answers depend in their last bits on what else is in a forward pass, so a part is known as a
whole or not at all. Filters and metrics run over known answers as over new ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from evomerge.evaluation.score_cache import ScoreCache

FORMAT = 1  # of keys and values; another number leaves all that is kept behind

Value = TypeVar("Value")


class NotKnown(BaseException):
    """Something has to be computed. No `Exception`: that nothing is known is no failure of a candidate."""


@dataclass
class KnownAnswers:
    """One merged model's part of the cache.

    Attributes:
        cache: where entries are.
        model: what identifies the merged model and how it computes, as JSON data.
        only: raise `NotKnown` instead of letting anything be computed.
        may_prepare: whether documents may be prepared that were not before; their check runs on the model's weights.
        documents: how many documents' answers were known.
    """

    cache: ScoreCache
    model: Mapping[str, Any]
    only: bool = False
    may_prepare: bool = True
    documents: int = 0
    _seen: dict[str, Any] = field(default_factory=dict)
    _fresh: dict[str, Any] = field(default_factory=dict)

    def strictly(self, may_prepare: bool) -> KnownAnswers:
        """The same, where nothing may be computed."""
        return replace(self, only=True, may_prepare=may_prepare, documents=0)

    def find(self, part: Mapping[str, Any], read: Callable[[Any], Value | None], documents: int = 0) -> Value | None:
        """What is known of a part.

        Args:
            part: what was asked and how, as JSON data.
            read: makes values of what was kept; None = it is not what it should be.
            documents: how many there are in this part.

        Raises:
            NotKnown: nothing is, and nothing may be computed.
        """
        key = self._key(part)
        if key not in self._seen:
            self._seen[key] = self.cache.get(key)
        kept = self._seen[key]
        found = None if kept is None else read(kept)
        if found is None:
            self.must_compute()
        else:
            self.documents += documents
        return found

    def must_compute(self) -> None:
        """Something is computed next.

        Raises:
            NotKnown: nothing may be.
        """
        if self.only:
            raise NotKnown

    def keep(self, part: Mapping[str, Any], value: Any) -> None:
        """Take note of a part that was computed now; None = there is nothing to keep."""
        if value is not None:
            self._fresh[self._key(part)] = value

    def commit(self) -> None:
        """Write what was computed; for evaluations that did not fail."""
        for key, value in self._fresh.items():
            self.cache.put(key, value)
        self._fresh.clear()

    def _key(self, part: Mapping[str, Any]) -> str:
        return json.dumps({"format": FORMAT, "model": self.model, "part": part}, sort_keys=True, allow_nan=False)
