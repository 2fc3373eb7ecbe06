"""A front as a table for the terminal: members and baselines on one split, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from evomerge.terms import SPLITS, with_unit

_SPLIT_NAMES = {"search": "search", "validation": "validation", "held_out": "held-out"}


def reported_split(front: Mapping[str, Any]) -> str:
    """The split a front is shown on: held-out where its members were scored there, else validation, else search.

    Args:
        front: as ``front_data`` made it.
    """
    return next((split for split in reversed(SPLITS) if front["counts"].get(split, {}).get("scored")), "search")


def front_table(
    front: Mapping[str, Any],
    split: str,
    title: str,
    points: Sequence[Mapping[str, Any]] | None = None,
    chosen: int | None = None,
) -> Table:
    """Members and baselines on the documents of one split.

    Args:
        front: as ``front_data`` made it.
        split: which scores; points without any there are left out.
        title: above the table.
        points: which of the front's to show, default all members.
        chosen: a candidate to set off; default the best.
    """
    objectives = front["objectives"]
    shown = [point for point in points or members(front) if split in point["splits"]]
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("point", no_wrap=True)
    table.add_column("", no_wrap=True)
    for objective in objectives:
        table.add_column(objective["name"], justify="right", overflow="fold")
    table.add_column("P(front)", justify="right")
    if front["constraints"]:
        table.add_column("constraints")
    marked = front["best"] if chosen is None else chosen
    for point in shown:
        here = point["splits"][split]
        cells = [_score(here["scores"][objective["name"]], objective["unit"]) for objective in objectives]
        cells.append("-" if here["probability"] is None else f"{here['probability']:.0%}")
        if front["constraints"]:
            cells.append(_constraints(point))
        is_marked = point["candidate"] is not None and point["candidate"] == marked
        label = ", ".join(marks(front, point, split, chosen))
        table.add_row(point["name"], label, *cells, style="bold" if is_marked else "")
    counted = front["num_documents"].get(split)
    if counted:
        table.caption = (
            f"{front['confidence']:.0%} intervals over {counted} {_SPLIT_NAMES[split]} documents\n"
            "P(front): how often no member dominates it, with other such documents"
        )
        table.caption_justify = "left"
    return table


def members(front: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The points on the front of the search documents."""
    return [point for point in front["points"] if point["kind"] == "member"]


def marks(front: Mapping[str, Any], point: Mapping[str, Any], split: str, chosen: int | None = None) -> list[str]:
    """What is worth saying of a point on a split: ``best``, ``knee``, ``chosen``, and who is ahead of it.

    Args:
        front: as ``front_data`` made it.
        point: one of its points.
        split: on which documents.
        chosen: a candidate that the user's preference chose.
    """
    number = point["candidate"]
    found = [name for name in ("best", "knee") if number is not None and number == front[name]]
    if number is not None and number == chosen:
        found.append("chosen")
    ahead = point["splits"].get(split, {}).get("dominated_by", [])
    if ahead:
        found.append(f"behind {_names(ahead)}")
    elif point["kind"] == "baseline":
        found.append("not dominated")
    return found


def short_list(front: Mapping[str, Any], split: str, count: int) -> list[Mapping[str, Any]]:
    """Members for a short table, in their order: best, knee, the best in each objective, then those not behind.

    Args:
        front: as ``front_data`` made it.
        split: which scores.
        count: how many at most.
    """
    scored = [point for point in members(front) if split in point["splits"]]
    wanted = [point["name"] for point in scored if point["candidate"] in (front["best"], front["knee"])]
    for objective in front["objectives"]:
        name, sign = objective["name"], 1 if objective["higher_is_better"] else -1
        values = [sign * point["splits"][split]["scores"][name]["value"] for point in scored]
        wanted += [scored[values.index(max(values))]["name"]] if values else []
    wanted += [point["name"] for point in scored if not point["splits"][split]["dominated_by"]]
    wanted += [point["name"] for point in scored]
    kept = set(list(dict.fromkeys(wanted))[:count])
    return [point for point in scored if point["name"] in kept]


def front_lines(front: Mapping[str, Any], split: str) -> list[str]:
    """What a table does not say: how many members hold, and which baselines they dominate."""
    counts = front["counts"].get(split)
    if counts is None:
        return []
    name = _SPLIT_NAMES[split]
    lines = [f"{counts['not_behind']} of {counts['scored']} members are non-dominated on the {name} documents"]
    baselines = [point for point in front["points"] if point["kind"] == "baseline" and split in point["splits"]]
    beaten = [(len(point["splits"][split]["dominated_by"]), point["name"]) for point in baselines]
    if beaten:
        said = ", ".join(f"{point} by {number}" for number, point in beaten if number) or "none"
        lines.append(f"baselines that members dominate there: {said}")
        free = [point for number, point in beaten if not number]
        lines += [f"not dominated by any member: {', '.join(free)}"] if free else []
    return lines


def _score(score: Mapping[str, Any], unit: str) -> str:
    decimals = 3 if score["low"] is not None else 4
    value = with_unit(score["value"], unit, decimals)
    if score["low"] is None:
        return value
    between = " to " if score["low"] < 0 else "-"
    return f"{value} ({score['low']:.3f}{between}{score['high']:.3f})"


def _constraints(point: Mapping[str, Any]) -> str:
    if point["kind"] == "baseline":
        return ""
    return "kept" if point["missed"] == 0 else f"missed by {point['missed']:.1%}"


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
