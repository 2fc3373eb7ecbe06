"""Fast answers to the dashboard's main question, ``GET /api/studies/<id>``, in its own words.

Optuna Dashboard 0.21 joins the search spaces of all trials anew for every answer, in time square in their parameters,
compares every trial with every other where there are more than two objectives, and writes every trial's JSON again:
seconds for 1,000 trials of 64 parameters. A finished trial never changes, so its JSON is kept here, written by the
dashboard's own serializer, and only what is new is added. Best trials are those that keep the constraints.

What our projections never write (running trials, notes on trials, plots of users' own, ranges that differ between
trials) is left to the dashboard.
"""

from __future__ import annotations

import json
import numbers
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from optuna_dashboard._serializer import serialize_frozen_trial, serialize_study_detail

_OWN_ATTRIBUTES = ("study:metric_names", "dashboard:note_ver", "dashboard:note_str:")


class StudyAnswers:
    """Answers for the studies of one storage; may be asked by several threads.

    Args:
        storage: an Optuna storage, in which no study is replaced while this lives.
    """

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self._studies: dict[int, _Trials] = {}
        self._lock = threading.Lock()

    def answer(self, study: Any, after: int = 0) -> list[bytes] | None:
        """The answer's JSON in pieces, None where the dashboard has to answer itself.

        Args:
            study: Optuna's ``FrozenStudy``.
            after: how many trials the browser has.
        """
        if not all(key.startswith(_OWN_ATTRIBUTES) for key in study.system_attrs):
            return None
        with self._lock:
            known = self._studies.setdefault(study._study_id, _Trials(study))
            if not known.update(self._storage.get_all_trials(study._study_id, deepcopy=False)):
                return None
            detail = serialize_study_detail(
                study, [], [], known.intersection(), known.union(), known.columns(), known.has_steps, {}, []
            )
            del detail["trials"], detail["best_trials"]
            best = [known.json[number] for number in known.best()]
            head = json.dumps(detail).encode()[:-1]
            shown = known.json[after:]
            return [head, b', "trials": [', b", ".join(shown), b'], "best_trials": [', b", ".join(best), b"]}"]


class _Trials:
    """What is known of the finished trials of one study.

    Attributes:
        json: of each trial, in their order.
        has_steps: whether any trial has intermediate values.
    """

    def __init__(self, study: Any) -> None:
        self._study = study
        self._signs = [-1.0 if direction.name == "MINIMIZE" else 1.0 for direction in study.directions]
        self._distributions: dict[str, Any] = {}
        self._num_with: Counter[str] = Counter()  # trials that have a parameter
        self._num_searched = 0
        self._sortable: dict[str, bool] = {}
        self._scored: list[int] = []
        self._fitness: list[list[float]] = []
        self._violations: list[float] = []
        self.json: list[bytes] = []
        self.has_steps = False

    def update(self, trials: Sequence[Any]) -> bool:
        """Take in the trials that are new; False where they are not of the kind this can answer for."""
        for trial in trials[len(self.json) :]:
            if not trial.state.is_finished() or not self._take_space(trial):
                return False
            for name, value in trial.user_attrs.items():
                number = isinstance(value, numbers.Real) and not isinstance(value, bool)
                self._sortable[name] = self._sortable.get(name, True) and number
            if trial.state.name == "COMPLETE":
                self._scored.append(len(self.json))
                self._fitness.append([sign * value for sign, value in zip(self._signs, trial.values, strict=True)])
                missed = trial.system_attrs.get("constraints") or ()
                self._violations.append(sum(max(0.0, value) for value in missed))
            # Last: a thread that fails before this takes the trial in again.
            self.json.append(json.dumps(serialize_frozen_trial(self._study._study_id, trial, {})).encode())
        return len(trials) == len(self.json)

    def _take_space(self, trial: Any) -> bool:
        if trial.state.name == "FAIL":  # as in the dashboard
            return True
        for name, distribution in trial.distributions.items():
            if self._distributions.setdefault(name, distribution) != distribution:
                return False
        self._num_with.update(trial.distributions.keys())
        self._num_searched += 1
        self.has_steps |= bool(trial.intermediate_values)
        return True

    def union(self) -> list[tuple[str, Any]]:
        """Every parameter with its range."""
        return sorted(self._distributions.items(), key=lambda item: item[0])

    def intersection(self) -> list[tuple[str, Any]]:
        """The parameters that all trials have."""
        return [(name, found) for name, found in self.union() if self._num_with[name] == self._num_searched]

    def columns(self) -> list[tuple[str, bool]]:
        """Every user attribute, and whether it is a number in all trials."""
        return list(self._sortable.items())

    def best(self) -> list[int]:
        """Places of the trials that nobody else beats, of those that keep the constraints where any does."""
        if not self._scored:
            return []
        from evomerge.search.front import feasible_front

        kept = feasible_front(self._fitness, self._violations)
        best = [number for number, member in zip(self._scored, kept, strict=True) if member]
        return best if len(self._signs) > 1 else best[:1]
