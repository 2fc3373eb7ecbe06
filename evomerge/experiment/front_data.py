"""The front of a run as mappings and lists: what summary.json and ``evomerge front --json`` hold."""

from __future__ import annotations

from typing import Any

from evomerge.experiment.front_view import FrontPoint, FrontView
from evomerge.terms import SplitName


def front_data(view: FrontView, is_searched: bool = True) -> dict[str, Any]:
    """Plain data of a front; scores are in their natural direction, by objective name.

    Args:
        view: the front.
        is_searched: whether the optimizer took all objectives; else the front is what one number left behind.

    Returns:
        ``points`` are members of the front, then the winner where it is none, then baselines; each has its scores for
        every split it was scored on, with ``dominated_by`` (other members) and ``dominates`` (baselines). ``counts``
        says for each split how many members were scored and how many of them no other member dominates.
    """
    counts = {}
    for split in view.splits:
        scored = [member.splits[split] for member in view.members if split in member.splits]
        counts[split] = {"scored": len(scored), "not_behind": sum(not here.is_behind for here in scored)}
    return {
        "is_searched": is_searched,
        "objectives": [
            {"name": objective.name, "higher_is_better": objective.higher_is_better, "unit": objective.unit}
            for objective in view.objectives
        ],
        "constraints": list(view.constraints),
        "confidence": view.confidence,
        "num_documents": dict(view.num_documents),
        "best": view.best,
        "knee": view.knee,
        "knee_split": view.knee_split,
        "counts": counts,
        "points": [_point(view, point) for point in view.points],
    }


def _point(view: FrontView, point: FrontPoint) -> dict[str, Any]:
    kind = "member" if point.is_member else "baseline" if point.candidate is None else "candidate"
    return {
        "kind": kind,
        "name": point.name,
        "candidate": point.candidate,
        "generation": point.generation,
        "recipe_id": point.recipe_id,
        "missed": point.missed,
        "splits": {split: _scores(view, point, split) for split in point.splits},
    }


def _scores(view: FrontView, point: FrontPoint, split: SplitName) -> dict[str, Any]:
    here = point.splits[split]
    return {
        "scores": {
            objective.name: {"value": score.value, "low": score.low, "high": score.high}
            for objective, score in zip(view.objectives, here.scores, strict=True)
        },
        "probability": here.probability,
        "dominated_by": list(here.dominated_by),
        "dominates": list(view.dominated_baselines(point, split)) if point.is_member else [],
    }
