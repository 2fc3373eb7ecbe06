"""What came of a run, in one plain sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.reports.summary_table import ONE_NUMBER


def lead_sentence(summary: Mapping[str, Any]) -> str:
    """The winner and its lead over the strongest baseline, with intervals.

    Args:
        summary: what summary.json holds.
    """
    winner = summary["winner"]
    if winner is None:
        return "No candidate has a fitness, so nothing won; the failures are listed below."
    row = next(row for row in summary["rows"] if row["kind"] == "winner")
    split = "held_out" if row["held_out"] else "validation" if row["validation"] else "search"
    documents = f"{summary['documents'].get(split, 0)} {split.replace('_', '-')} documents"
    name = summary["objectives"][0] if len(summary["objectives"]) == 1 else _number_name(summary)
    value = _with_interval(row[split], summary["confidence"])
    text = f"Candidate {winner['candidate']} won: {name} {value} on {documents}"
    if not summary["comparison"]:
        return f"{text}; it was not compared with baselines on held-out documents."
    # The strongest baseline is the one that the winner is least ahead of.
    entry = min(summary["comparison"], key=lambda item: float(item["difference"]))
    difference = f"{entry['difference']:+.3f} ({entry['low']:+.3f} to {entry['high']:+.3f})"
    if entry["low"] > 0:
        return f"{text}, ahead of the strongest baseline, {entry['against']}, by {difference}."
    if entry["high"] < 0:
        return f"{text}, behind the strongest baseline, {entry['against']}: {difference}."
    return f"{text}, not told apart from the strongest baseline, {entry['against']}: {difference}."


def _number_name(summary: Mapping[str, Any]) -> str:
    return str(ONE_NUMBER.get(summary["scalarisation"], summary["scalarisation"]))


def _with_interval(scores: Mapping[str, Any], confidence: float) -> str:
    if scores["low"] is None:
        return f"{scores['value']:.3f}"
    return f"{scores['value']:.3f} ({confidence:.0%} interval {scores['low']:.3f} to {scores['high']:.3f})"
