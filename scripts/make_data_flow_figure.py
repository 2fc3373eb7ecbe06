"""Draw the recipe in docs/data_flow.md: scripts/make_data_flow_figure.py writes docs/data_flow.svg."""

import re
from pathlib import Path

from evomerge.files import atomic_write_bytes
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.recipe_yaml import parse_recipe
from evomerge.reports.plain_figure import figure_bytes
from evomerge.reports.route_figure import route_figure

PAGE = Path(__file__).parents[1] / "docs" / "data_flow.md"
TARGET = PAGE.with_suffix(".svg")


def recipe() -> Recipe:
    """The first YAML block of the page."""
    found = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None, f"{PAGE} has no YAML block"
    return parse_recipe(found.group(1), str(PAGE))


def figure() -> bytes:
    """The figure's file."""
    drawn = route_figure(recipe(), "a route of ten hops", [("math", 8), ("spanish", 8)])
    assert drawn is not None, f"the first recipe of {PAGE} is no route"
    return figure_bytes(drawn, "svg")


if __name__ == "__main__":
    atomic_write_bytes(TARGET, figure())
