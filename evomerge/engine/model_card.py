"""The README of an exported model: what it was made from, how, and how it scored. Plain text in, plain text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.recipes.recipe import Recipe, Source

NOTE = "Merged with evomerge. The licences of the source models apply to this model; check them before you share it."


def model_card(recipe: Recipe, recipe_text: str, title: str, card: Mapping[str, Any] | None = None) -> str:
    """A model card in Markdown with YAML front matter.

    Args:
        recipe: what was merged.
        recipe_text: the recipe as YAML.
        title: heading.
        card: further facts, all optional. ``summary``: a paragraph. ``scores``: ``{"columns": [..], "rows": [[..]]}``.
            Any other key becomes a section: a mapping or sequence turns into a list, a string into a paragraph
            (``splits``, ``provenance``, ``fingerprints``).
    """
    facts = dict(card or {})
    parts = [_front_matter(recipe), f"# {title}"]
    if summary := facts.pop("summary", None):
        parts.append(str(summary))
    parts.append("## Sources\n" + "\n".join(f"- `{source}`" for source in recipe.sources))
    if scores := facts.pop("scores", None):
        parts.append("## Scores\n" + _table(scores["columns"], scores["rows"]))
    for key, value in facts.items():
        parts.append(f"## {str(key).replace('_', ' ').capitalize()}\n" + _section(value))
    parts.append(f"## Recipe\n`recipe_id: {recipe.recipe_id}`\n\n```yaml\n{recipe_text.strip()}\n```")
    parts.append(NOTE)
    return "\n\n".join(parts) + "\n"


def _front_matter(recipe: Recipe) -> str:
    # The hub links base_model entries, so only hub ids may stand there.
    hub = [source.model for source in recipe.sources if _is_hub_id(source)]
    lines = ["---", "library_name: transformers", "tags: [merge, evomerge]"]
    if hub:
        lines += ["base_model:", *(f"- {name}" for name in hub)]
    return "\n".join([*lines, "---"])


def _is_hub_id(source: Source) -> bool:
    return source.model.count("/") == 1 and source.model[0] not in "./~" and ":" not in source.model


def _table(columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[_cell(value) for value in row] for row in rows]
    lines = [[str(column) for column in columns], ["---"] * len(columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else str(value).replace("|", "\\|")


def _section(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"- **{key}**: {_cell(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return "\n".join(f"- {_cell(entry)}" for entry in value)
    return str(value)
