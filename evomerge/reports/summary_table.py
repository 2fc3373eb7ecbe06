"""The table at the end of a run: the winner beside the baselines, on the documents nobody searched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from evomerge.reports.front_table import front_lines, front_table, members, reported_split, short_list
from evomerge.reports.progress import format_seconds
from evomerge.terms import with_unit

MAX_MEMBERS = 8
ONE_NUMBER = {"weighted_mean": "mean", "harmonic_mean": "harmonic mean"}


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Print what summary.json holds for a person.

    Args:
        summary: as ``build_summary`` made it.
        console: where to.
    """
    console.print(score_table(summary))
    front = searched_front(summary)
    if front is not None:
        console.print(summary_front_table(summary, front))
    if summary["comparison"]:
        console.print(comparison_table(summary))
    for line in closing_lines(summary):
        console.print(line, markup=False, highlight=False)


def searched_front(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The front, where the search was for one and it has more than one member."""
    front = summary.get("front")
    return front if front and front["is_searched"] and len(members(front)) > 1 else None


def summary_front_table(summary: Mapping[str, Any], front: Mapping[str, Any]) -> Table:
    """Some members of the front on the documents nobody searched where there are any, the rest only counted."""
    split = reported_split(front)
    shown = short_list(front, split, MAX_MEMBERS)
    total = len(members(front))
    some = f"{len(shown)} of {total} members" if len(shown) < total else f"{total} members"
    title = f"The front, {some}, on the {split.replace('_', '-')} documents"
    return front_table(front, split, title, shown)


def score_table(summary: Mapping[str, Any], split: str | None = None) -> Table:
    """Every scored model, best first.

    Args:
        summary: what summary.json holds.
        split: whose documents; None = those nobody searched, where there are any.
    """
    split = split or ("held_out" if any(row["held_out"] for row in summary["rows"]) else "search")
    title = f"{summary['name']}: scores on {_documents(summary, split)} {split.replace('_', '-')} documents"
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    names = [*summary["objectives"], *summary["reported_only"]]
    units = summary.get("units", {})
    table.add_column(ONE_NUMBER.get(summary["scalarisation"], summary["scalarisation"]), justify="right")
    table.add_column(f"{summary['confidence']:.0%} interval", justify="right")
    for name in names:
        table.add_column(name + (" *" if name in summary["reported_only"] else ""), justify="right", overflow="fold")
    if split != "search":
        table.add_column("on search", justify="right")
    for row in sorted(summary["rows"], key=lambda row: -_value(row, split)):
        scores = row[split]
        if not scores:  # finalists that validation left behind
            continue
        if row["kind"] == "finalist" and searched_front(summary) is not None:  # they have a table of their own
            continue
        interval = f"{scores['low']:.3f}-{scores['high']:.3f}" if scores["low"] is not None else ""
        cells = [_number(scores["scores"].get(name), units.get(name, "")) for name in names]
        style = "bold" if row["kind"] == "winner" else ""
        on_search = [_number((row["search"] or {}).get("value"))] if split != "search" else []
        table.add_row(row["name"], _number(scores["value"]), interval, *cells, *on_search, style=style)
    if summary["reported_only"]:
        table.caption = "* reported only: not searched, not in the mean"
        table.caption_justify = "left"
    return table


def comparison_table(summary: Mapping[str, Any]) -> Table:
    """The winner against each baseline."""
    table = Table(
        title="The winner against each baseline, held-out, paired over documents",
        title_justify="left", header_style="bold", box=None, pad_edge=False,
    )  # fmt: skip
    table.add_column("against", overflow="fold")
    table.add_column("difference", justify="right")
    table.add_column(f"{summary['confidence']:.0%} interval", justify="right")
    table.add_column("verdict")
    for entry in summary["comparison"]:
        verdict = "better" if entry["low"] > 0 else "worse" if entry["high"] < 0 else "not told apart"
        interval = f"{entry['low']:+.3f} to {entry['high']:+.3f}"
        table.add_row(entry["against"], f"{entry['difference']:+.3f}", interval, verdict)
    return table


def closing_lines(summary: Mapping[str, Any]) -> list[str]:
    """What is left to say: the winner, what it cost, and where everything lies."""
    winner = summary["winner"]
    lines = []
    if winner is None:
        lines.append("no candidate has a fitness; see log.txt in the run directory")
    else:
        how = {"validation": "chosen on validation documents", "search": "best on the search documents"}[
            winner["chosen_on"]
        ]
        lines.append(f"winner: candidate {winner['candidate']} ({how}), recipe {winner['recipe_id']}")
    front = searched_front(summary)
    if front is not None:
        lines += front_lines(front, reported_split(front))
        lines.append(f"all members, and how to choose one: evomerge front {summary['run_dir']}")
    if (engine := summary.get("scored_by", "hf")) != "hf":
        lines.append(f"all scores, held-out ones too, by {engine}; lm-eval's own loops scored nothing")
    cost = summary["cost"]
    lines.append(
        f"{summary['evaluations']} evaluations ({summary['failed']} failed) in {format_seconds(cost['wall_seconds'])}; "
        f"mean seconds each: merge {cost['merge']:.2f}, forward {cost['forward']:.2f}, metric {cost['metric']:.2f}, "
        f"wait {cost['wait']:.2f}; ended by {summary['reason']}"
    )
    if summary.get("score_cache"):
        lines.append(_cache_line(summary["score_cache"]))
    if summary.get("racing"):
        lines.append(racing_line(summary["racing"]))
    if summary.get("estimation"):
        lines.append(estimation_line(summary["estimation"]))
    lines.append(f"run directory: {summary['run_dir']}")
    return lines


def _cache_line(cache: Mapping[str, Any]) -> str:
    line = f"evaluation cache: {cache['recalled']} of {cache['evaluations']} evaluations came out of it"
    partly = f", {cache['partly']} in part" if cache["partly"] else ""
    return f"{line}{partly}; mean seconds are those of the others" if cache["documents"] else line


def estimation_line(estimation: Mapping[str, Any]) -> str:
    """What estimating saved and how far estimates were off, in a line."""
    name = f"estimation ({estimation['estimator']})"
    if not estimation["estimated"]:
        return f"{name}: nobody was estimated"
    scored, without = estimation["documents_scored"], estimation["documents_without"]
    line = (
        f"{name}: {estimation['estimated']} candidates estimated, {estimation['completed']} of them completed later; "
        f"{estimation['documents_per_candidate']:.1f} documents each, {scored:,} of {without:,}, "
        f"{1 - scored / without:.0%} spared"
    )
    for kind, words in (("sampled", "drawn at random"), ("leaders", "best by estimate")):
        errors = estimation["errors"][kind]
        if errors["candidates"]:
            line += (
                f"; off by {errors['rmse']:.3f} (root mean square, {errors['bias']:+.3f} on average) for "
                f"{errors['candidates']} {words}"
            )
    if estimation["widenings"]:
        end = "then switched off" if estimation["is_off"] else f"to {estimation['subset']} documents"
        line += f"; widened {estimation['widenings']} times, {end}"
    return line


def racing_line(racing: Mapping[str, Any]) -> str:
    """What racing saved and how often it was wrong, in a line."""
    if not racing["stopped"]:
        return f"racing ({racing['rule']}): nobody was stopped"
    scored, without = racing["documents_scored"], racing["documents_without"]
    line = (
        f"racing ({racing['rule']}): {racing['stopped']} candidates stopped; {scored:,} of {without:,} documents "
        f"scored, {1 - scored / without:.0%} spared"
    )
    if not racing["audited"]:
        return line
    return (
        f"{line}; {racing['audited']} of the stopped were scored to the end, {racing['false_stops']} of these turned "
        "out better than what they were behind"
    )


def _value(row: Mapping[str, Any], split: str) -> float:
    scores = row[split]
    return float("-inf") if not scores or scores["value"] is None else float(scores["value"])


def _documents(summary: Mapping[str, Any], split: str) -> int:
    return int(summary["documents"].get(split, 0))


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else with_unit(value, unit, decimals=3)
