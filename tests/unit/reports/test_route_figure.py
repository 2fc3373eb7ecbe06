"""The figure of a route shows every hop in its model's colour, and is the same file every time."""

import runpy
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest

from evomerge.recipes.recipe import Hop, Merge, Recipe, Route, Source
from evomerge.reports.look import COLOURS, NEGATIVE
from evomerge.reports.plain_figure import figure_bytes
from evomerge.reports.route_figure import route_figure

SVG = "{http://www.w3.org/2000/svg}"
HOPS = (Hop("a", 0), Hop("b", 1, 2.0), Hop("b", 1, -0.5), Hop("merged", 3), Hop("a", 3, 0.25))
MODELS = (("b", Source("mb")), ("a", Source("ma")), ("merged", Merge("linear", (("x", Source("ma")),))))
RECIPE = Recipe(Route(MODELS, HOPS, "a", output_scale=1.5))


def svg(recipe: Recipe, title: str = "") -> bytes:
    figure = route_figure(recipe, title, [("a", 6)])
    assert figure is not None
    return figure_bytes(figure, "svg")


def test_every_hop_is_drawn_in_its_models_colour_and_size() -> None:
    root = ET.fromstring(svg(RECIPE, "candidate 3 <of & a run>"))
    marks = [group for group in root.iter(f"{SVG}g") if group.get("id", "").startswith("hop-")]
    names = [f"hop-{step}-{hop.model}-{hop.block}" for step, hop in enumerate(HOPS)]
    assert [mark.get("id") for mark in marks] == names
    # The model that lends the ends comes first, then the others in their order.
    colours = {"a": COLOURS[0], "b": COLOURS[1], "merged": COLOURS[2]}
    for mark, hop in zip(marks, HOPS, strict=True):
        style = " ".join(path.get("style", "") for path in mark.iter(f"{SVG}path"))
        assert (NEGATIVE in style) == (hop.scale < 0)
        assert (colours[hop.model] in style) == (hop.scale > 0)
    places = [next(mark.iter(f"{SVG}use")) for mark in marks]
    xs, ys = ([float(place.get(axis, "nan")) for place in places] for axis in ("x", "y"))
    steps = [second - first for first, second in pairwise(xs)]
    assert steps == pytest.approx([steps[0]] * 4, rel=1e-4)
    row = (ys[0] - ys[4]) / 3  # block 3 of a lies three rows above its block 0
    assert row > 0
    assert ys[1] == ys[2] == pytest.approx(ys[0] - 8 * row, rel=1e-4)  # six blocks of a, a gap, block 1 of b

    def extent(index: int) -> float:
        numbers = marks[index].find(f".//{SVG}path").get("d", "").replace("M", " ").split()  # type: ignore[union-attr]
        return max(abs(float(number)) for number in numbers if number[-1].isdigit())

    assert extent(1) > extent(0) > extent(4)  # scales 2, 1, 0.25


def test_the_figure_says_what_it_shows() -> None:
    text = " ".join(
        element.text or "" for element in ET.fromstring(svg(RECIPE, "candidate 3 <x & y>")).iter(f"{SVG}text")
    )
    for expected in (
        "candidate 3 <x & y>", "a: 2 hops, ends", "b: 2 hops", "merged: 1 hops", "negative scale",
        "step; scale of the stream -0.5 to 2, output 1.5", "block",
    ):  # fmt: skip
        assert expected in text
    plain = svg(Recipe(Route(MODELS[:2], (Hop("a", 0), Hop("b", 1)), "a"))).decode()
    assert "scale of" not in plain
    assert "negative" not in plain


def test_files_are_the_same_every_time_and_of_their_kind() -> None:
    figure = route_figure(RECIPE)
    assert figure is not None
    assert figure_bytes(figure, "svg") == figure_bytes(figure, "svg")
    assert svg(RECIPE) == svg(RECIPE)
    assert figure_bytes(figure, "png").startswith(b"\x89PNG")
    assert figure_bytes(figure, "pdf").startswith(b"%PDF")


def test_a_long_route_and_many_models_fit_on_a_page() -> None:
    models = tuple((f"m{index}", Source(f"m{index}")) for index in range(10))
    hops = tuple(Hop(f"m{step % 10}", step % 40) for step in range(130))
    figure = route_figure(Recipe(Route(models, hops, "m0")))
    assert figure is not None
    assert max(figure.get_size_inches()) <= 16
    assert figure_bytes(figure).count(b'id="hop-') == 130


def test_other_merges_have_no_figure() -> None:
    assert route_figure(Recipe(Source("a"))) is None


def test_the_figure_in_the_documents_shows_the_recipe_beside_it() -> None:
    script = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "make_data_flow_figure.py"))
    hops = len(script["recipe"]().model.hops)
    for file in (script["figure"](), script["TARGET"].read_bytes()):
        assert file.count(b'id="hop-') == hops, "run scripts/make_data_flow_figure.py"


def test_drawing_leaves_no_global_state() -> None:
    script = (
        "import sys, matplotlib\n"
        "before = matplotlib.rcParams.copy()\n"
        "from tests.unit.reports.test_route_figure import RECIPE, svg\n"
        "svg(RECIPE)\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
