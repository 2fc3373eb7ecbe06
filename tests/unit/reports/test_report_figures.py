"""Figures of a run show its numbers, are the same files every time, and cope with much, little and nothing."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from evomerge.recipes.recipe import Merge, Recipe, Route, Rule, Source
from evomerge.recipes.resolve import resolve_values
from evomerge.reports.candidates_figure import ScoredModel, candidates_figure
from evomerge.reports.coefficients import heat_maps
from evomerge.reports.convergence_figure import MAX_DOTS, convergence_figure
from evomerge.reports.cost_figure import cost_figure
from evomerge.reports.front_figure import front_figures
from evomerge.reports.front_points import FrontData, FrontMark, FrontSplit, thinned_cloud
from evomerge.reports.heat_map_figure import heat_map_figure
from evomerge.reports.importance_figure import importance_figure
from evomerge.reports.look import SIZES
from evomerge.reports.plain_figure import Drawing
from evomerge.reports.run_cost import read_cost, read_failures
from evomerge.reports.run_history import read_history, run_clock, thinned
from evomerge.store.parameter_importance import parameter_importance
from evomerge.terms import Objective
from tests.unit.reports.recorded_run import recorded_state

SVG = "{http://www.w3.org/2000/svg}"


def mean(fitness: tuple[float, ...]) -> float:
    return float(np.mean(fitness))


def front_data(objectives: int) -> FrontData:
    rows = np.sqrt(np.random.default_rng(1).dirichlet(np.ones(objectives), 5))
    marks = [
        FrontMark(
            f"c{number}", tuple(map(float, row)), tuple(map(float, row - 0.1)), tuple(map(float, row + 0.1)), number,
            is_member=True, is_best=number == 1, is_knee=number == 2, is_behind=number == 3,
        )
        for number, row in enumerate(rows)
    ]  # fmt: skip
    marks.append(FrontMark("expert a$b$ & <c>", (0.1,) * objectives))
    cloud = tuple((0.05 * index,) * objectives for index in range(4))
    goals = tuple(Objective(f"task_{index}", index != 1) for index in range(objectives))
    return FrontData(goals, (FrontSplit("search", tuple(marks), cloud), FrontSplit("held-out", tuple(marks[:4]))))


def texts(drawing: Drawing) -> str:
    return " ".join(element.text or "" for element in ET.fromstring(drawing.file("svg")).iter(f"{SVG}text"))


def test_the_history_has_the_best_so_far_and_the_middle_of_each_generation() -> None:
    state = recorded_state(24, 2)
    history = read_history(state, mean, "mean")
    values = {record.id: mean(record.fitness) for record in state.candidates if record.fitness is not None}
    assert [step.candidate for step in history.steps] == list(values)
    assert [step.best for step in history.steps] == list(np.maximum.accumulate(list(values.values())))
    assert history.steps[-1].evaluations == 24
    assert history.steps[-1].seconds == 2 + 2 * 24
    for number, generation in enumerate(history.generations):
        inside = [values[at] for at in range(8 * number, 8 * number + 8) if at in values]
        assert generation.median == pytest.approx(np.median(inside))
    assert history.baselines[0][1] >= history.baselines[1][1]


def test_one_lowered_objective_is_shown_in_its_own_direction() -> None:
    history = read_history(recorded_state(16, 1, lowered=(0,)), mean, "mean")
    assert history.label == "task_0"
    assert not history.higher_is_better
    best = [step.best for step in history.steps]
    assert best == list(np.minimum.accumulate([step.value for step in history.steps]))
    assert best[-1] > 0


def test_pauses_between_sessions_do_not_count() -> None:
    seconds = run_clock([(100.0, 110.0), (1000.0, 1005.0)])
    assert [seconds(time) for time in (100, 104, 110, 500, 1000, 1003)] == [0, 4, 10, 10, 10, 13]


def drawings(size: str) -> list[Drawing]:
    state = recorded_state(16, 2)
    history, cost = read_history(state, mean, "mean"), read_cost(state)
    found = [convergence_figure(history, SIZES[size]), cost_figure(cost, SIZES[size])]
    return [*filter(None, found), *front_figures(front_data(2), SIZES[size])]


def test_figures_are_the_same_every_time_in_every_form() -> None:
    first, second = drawings("page"), drawings("page")
    assert [drawing.name for drawing in first] == ["convergence", "cost", "front"]
    for one, other in zip(first, second):
        assert one.file("svg") == other.file("svg")
    pdf = first[1].file("pdf")
    assert pdf == second[1].file("pdf")
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert first[1].file("png").startswith(b"\x89PNG")


def test_figures_fit_a_column_of_a_paper() -> None:
    for drawing in drawings("one-column"):
        assert drawing.figure.get_figwidth() == SIZES["one-column"].width
        assert drawing.figure.get_figheight() < 9.5


@pytest.mark.parametrize("objectives", [2, 3, 5])
def test_every_member_of_a_front_has_its_mark_once_and_baselines_their_names(objectives: int) -> None:
    drawings = front_figures(front_data(objectives))
    assert [drawing.name for drawing in drawings] == (["front"] if objectives == 2 else ["front", "front_held_out"])
    roots = [ET.fromstring(drawing.file("svg")) for drawing in drawings]
    ids = [element.get("id") or "" for root in roots for element in root.iter()]
    assert sorted(name for name in ids if name.startswith("front-")) == [f"front-c{number}" for number in range(5)]
    title = next(element for element in roots[0].iter() if element.get("id") == "front-c1").find(f"{SVG}title")
    assert title is not None
    assert title.text is not None
    assert title.text.startswith("c1: task_0 ")
    assert "expert a$b$ & <c>" in texts(drawings[0])  # as it is written, no formula
    assert "task_1 (lower is better)" in texts(drawings[0])
    assert len(drawings[0].element()) < 200_000
    assert "nan" not in drawings[0].element().lower()


def test_a_search_without_a_fitness_has_no_figures() -> None:
    state = recorded_state(16, 2, failing=1.0)
    assert convergence_figure(read_history(state, mean, "mean")) is None
    assert cost_figure(read_cost(state)) is None
    assert parameter_importance(state) == ()
    assert importance_figure(()) is None
    assert candidates_figure([], [], "x", "search") is None
    assert front_figures(FrontData(state.started.objectives if state.started else (), ())) == []
    groups = read_failures(state)
    assert {(group.kind, group.count) for group in groups} == {("timeout", 8), ("exception", 8)}
    assert groups[0].message == "<b>too</b> late & lost"


def test_clouds_are_thinned_but_no_new_best_is_lost() -> None:
    history = read_history(recorded_state(900, 2), mean, "mean")
    kept = thinned(history.steps, MAX_DOTS)
    improving = {step.candidate for step in history.steps if step.candidate == step.best_candidate}
    assert len(kept) <= MAX_DOTS + len(improving)
    assert improving <= {step.candidate for step in kept}
    drawing = convergence_figure(history)
    assert drawing is not None
    assert len(drawing.file("svg")) < 250_000
    cloud = thinned_cloud([(float(index // 2),) for index in range(4000)], 500)
    assert len(cloud) == 500
    assert len(set(cloud)) == 500


def test_importance_finds_the_gene_that_decides() -> None:
    importance = parameter_importance(recorded_state(64, 2, failing=0.0))
    assert [objective for objective, _ in importance] == ["task_0", "task_1"]
    for _, shares in importance:
        assert shares[0][0] == "coefficient/e0"
        assert sum(share for _, share in shares) == pytest.approx(1)
    drawing = importance_figure(importance)
    assert drawing is not None
    assert "coefficient/e0" in texts(drawing)


def test_costs_add_up() -> None:
    cost = read_cost(recorded_state(16, 1, failing=0.0))
    assert {phase.name: phase.count for phase in cost.phases} == {"baselines": 2, "search": 16}
    assert cost.phases[1].seconds.forward == pytest.approx(16.0)
    assert cost.wall_seconds == 2 + 2 * 16 + 1
    assert cost.occupied_seconds == pytest.approx(18 * 1.5)
    assert cost.idle_seconds == pytest.approx(cost.wall_seconds - 18 * 1.5)


def test_the_winner_stands_beside_the_baselines() -> None:
    models = [ScoredModel("c3, the winner", 0.6, 0.5, 0.7, is_winner=True), ScoredModel("base", 0.4)]
    drawing = candidates_figure([0.1, 0.2, 0.4], models, "accuracy", "held-out")
    assert drawing is not None
    for expected in ("c3, the winner", "base", "accuracy, held-out documents"):
        assert expected in texts(drawing)


RULES = (
    Rule(0.1, (0, 2), "attention", "a"), Rule(0.2, (0, 2), "attention", "b"), Rule(0.3, (0, 2), None, "a"),
    Rule(0.4, (0, 2), None, "b"), Rule((0.5, 0.9), None, "attention", "a"), Rule(0.6, None, "attention", "b"),
    Rule(0.05, component="embeddings", expert="a"), Rule(0.7, expert="a"), Rule(-0.8, expert="b"),
)  # fmt: skip
MERGE = Merge(
    "task_arithmetic", (("a", Source("ma")), ("b", Source("mb"))), Source("base"),
    (("coefficient", RULES), ("lambda", (Rule(1.0),)), ("normalize", (Rule(False),))),
)  # fmt: skip


@pytest.mark.parametrize("model", [MERGE, Route((("merged", MERGE), ("x", Source("mx"))), (), "merged")])
def test_heat_maps_hold_what_the_recipe_gives_every_tensor(model: Merge | Route) -> None:
    (found,) = heat_maps(Recipe(model), {"base": 5})  # what is the same everywhere is left out
    assert found.parameter == "coefficient"
    assert found.columns == ("a", "b")
    panels = {panel.title: panel for panel in found.panels}
    assert list(panels) == ["attention", "other", "outside the blocks"]
    for title in ("attention", "other"):
        for block in range(5):
            values = resolve_values(MERGE, "", block, title if title == "attention" else "mlp", 5)["coefficient"]
            row = next(index for index, name in enumerate(panels[title].rows) if block in _blocks(name))
            assert tuple(panels[title].values[row]) == values
    assert panels["outside the blocks"].rows == ("embeddings",)
    assert (
        tuple(panels["outside the blocks"].values[0]) == resolve_values(MERGE, "", None, "embeddings", 5)["coefficient"]
    )
    drawing = heat_map_figure([found], "candidate 1")
    assert drawing is not None
    assert "−0.80" in texts(drawing) or "-0.80" in texts(drawing)


def test_a_searched_number_is_shown_even_where_it_is_everywhere_the_same() -> None:
    assert [found.parameter for found in heat_maps(Recipe(MERGE), {"base": 5}, {"lambda"})] == ["coefficient", "lambda"]
    assert heat_maps(Recipe(MERGE), {"base": 5}, {"lambda"})[1].columns == ("all",)
    assert heat_map_figure([], "nobody") is None


def _blocks(name: str) -> range:
    first, _, last = name.removeprefix("block ").partition("-")
    return range(int(first), int(last or first) + 1)
