"""MAP: quadratics are recovered, their errors are honest, fronts are the true ones, limits are kept and told."""

import math

import numpy as np
import pytest
from scipy.special import expit

from evomerge.search.base import Optimizer, Problem, Proposal, Result
from evomerge.search.bayesian_map import BayesianMap, share_out
from evomerge.search.catalogue import build_optimizer, validate_optimizer
from evomerge.search.expert_genes import expert_genes
from evomerge.search.front import hypervolume, non_dominated
from evomerge.search.map_design import design
from evomerge.search.nested_map import NestedMap
from evomerge.search.population import design_size, num_unknowns
from evomerge.search.quadratic_surrogate import TooFewPoints, fit_quadratic
from evomerge.search.surrogate_front import reference_directions, spread, surrogate_front
from evomerge.search.surrogate_model import fit_surrogates
from evomerge.terms import Array, Gene, GeneKind


class Landscape:
    """M metrics that are exactly sigmoid(quadratic) in the unit box, each best at a point of its own."""

    def __init__(self, num_genes: int, num_objectives: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        roots = rng.normal(size=(num_objectives, num_genes, num_genes)) / math.sqrt(num_genes)
        self.a = -4 * roots @ roots.transpose(0, 2, 1)
        best = rng.random((num_objectives, num_genes))
        self.b = -np.einsum("mij,mj->mi", self.a, best)
        self.e = rng.normal(size=num_objectives) + 0.5 * np.einsum("mi,mij,mj->m", best, self.a, best)

    def __call__(self, points: Array) -> Array:
        quadratic = 0.5 * np.einsum("ni,mij,nj->nm", points, self.a, points) + points @ self.b.T + self.e
        values: Array = expit(quadratic)
        return values


def genes(count: int, low: float = 0.0, high: float = 1.0) -> tuple[Gene, ...]:
    return tuple(Gene(f"coefficient/e{i}", low=low, high=high, initial=0.5 * (low + high)) for i in range(count))


def search(optimizer: Optimizer, landscape: Landscape, evaluations: int) -> tuple[list[Proposal], Array]:
    asked: list[Proposal] = []
    values: list[Array] = []
    while len(asked) < evaluations:
        batch = [optimizer.ask() for _ in range(min(optimizer.population_size, evaluations - len(asked)))]
        rows = [landscape(proposal.genotype[None])[0] for proposal in batch]
        optimizer.tell([Result(one.index, one.genotype, tuple(row.tolist())) for one, row in zip(batch, rows)])
        asked += batch
        values += rows
    return asked, np.array(values)


@pytest.mark.parametrize("num_genes", [2, 3, 4, 6, 8])
def test_exact_quadratics_are_recovered(num_genes: int) -> None:
    for seed in range(4):
        landscape = Landscape(num_genes, 1, seed)
        points = np.random.default_rng(seed).random((2 * num_unknowns(num_genes), num_genes))
        fit = fit_quadratic(points, landscape(points)[:, 0])
        assert fit.link.name == "sigmoid"
        np.testing.assert_allclose(fit.a, landscape.a[0], atol=1e-3)
        np.testing.assert_allclose(fit.b, landscape.b[0], atol=1e-3)
        assert fit.e == pytest.approx(landscape.e[0], abs=1e-3)


@pytest.mark.parametrize(("num_genes", "steps"), [(2, 101), (3, 31)])
def test_the_front_is_the_true_one(num_genes: int, steps: int) -> None:
    """Against a brute-force grid, from (K + 1)(K + 2) noiseless points, with as many objectives as genes."""
    axes = [np.linspace(0, 1, steps)] * num_genes
    grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, num_genes)
    for seed in range(2):
        landscape = Landscape(num_genes, num_genes, seed)
        rng = np.random.default_rng(seed)
        points = rng.random((2 * num_unknowns(num_genes), num_genes))
        model = fit_surrogates(points, landscape(points))
        corner = np.zeros(num_genes)
        found, _ = surrogate_front(
            model.predict, corner, corner + 1, rng, start=points, population_size=100 * (num_genes - 1)
        )
        true = landscape(grid)
        true = true[non_dominated(true)]
        reference = (true.min(axis=0) - 0.05 * np.ptp(true, axis=0)).tolist()
        assert hypervolume(landscape(found), reference) > 0.99 * hypervolume(true, reference)


@pytest.mark.parametrize("documents", [25, 200])
def test_standard_errors_under_binomial_noise_are_calibrated(documents: int) -> None:
    covered, wide = [], []
    for seed in range(200):
        landscape, rng = Landscape(2, 1, seed), np.random.default_rng(seed)
        points, probes = rng.random((20, 2)), rng.random((10, 2))
        counts = rng.binomial(documents, landscape(points)[:, 0])
        fit = fit_quadratic(points, counts / documents, link="sigmoid", num_documents=documents)
        errors = fit.standard_errors(probes)
        covered.append(np.abs(fit.predict(probes) - landscape(probes)[:, 0]) < 1.96 * errors)
        wide.append(errors)
    assert 0.93 < np.mean(covered) < 0.98
    assert 0 < np.mean(wide) < 1 / math.sqrt(documents)


def test_all_or_nothing_scores_stay_finite() -> None:
    """Perfectly separated scores have no finite maximum likelihood; half a document keeps them off the ends."""
    points = np.random.default_rng(0).random((20, 2))
    fit = fit_quadratic(points, (points[:, 0] > 0.5).astype(float), num_documents=10)
    assert np.all(np.isfinite(fit.coefficients))
    assert fit.predict(np.array([[0.95, 0.5]]))[0] > 0.8
    assert fit.predict(np.array([[0.05, 0.5]]))[0] < 0.2


def test_links_follow_the_data() -> None:
    points = np.random.default_rng(1).random((20, 2))
    inside = (points - 0.4) @ np.array([1.0, -0.5])
    loss = -np.logaddexp(0, 3 * inside + 4 * inside**2 - 4)
    assert fit_quadratic(points, loss).link.name == "softplus"
    assert fit_quadratic(points, loss).error < 1e-6
    assert fit_quadratic(points, loss - 1, link="identity").link.name == "identity"
    assert fit_quadratic(points, -50 - inside**2).link.name == "identity"
    assert fit_quadratic(points, 20 * inside).link.name == "identity"
    rate = fit_quadratic(points, -expit(inside), num_documents=100)
    assert (rate.link.name, rate.link.lowered) == ("sigmoid", True)
    np.testing.assert_allclose(rate.predict(points), -expit(inside), atol=1e-8)


def test_left_out_errors_are_those_of_fits_without_the_point() -> None:
    rng = np.random.default_rng(2)
    points = rng.random((15, 2))
    values = 5 * points[:, 0] - 3 * points[:, 1] ** 2 + rng.normal(size=15)
    fit = fit_quadratic(points, values, link="identity")
    for index in (0, 7):
        rest = np.arange(15) != index
        without = fit_quadratic(points[rest], values[rest], link="identity")
        assert fit.leave_one_out[index] == pytest.approx(values[index] - without.predict(points[[index]])[0])


@pytest.mark.parametrize(
    ("points", "independent"),
    [
        (np.random.default_rng(0).random((5, 2)), 5),
        (np.repeat(np.random.default_rng(0).random((4, 2)), 5, axis=0), 4),
        (np.linspace(0, 1, 30)[:, None] * np.ones((1, 2)), 3),
    ],
)
def test_points_that_do_not_determine_the_quadratic_are_refused(points: Array, independent: int) -> None:
    message = f"needs 6 independent points; the {len(points)} points given amount to {independent}"
    with pytest.raises(TooFewPoints, match=message):
        fit_quadratic(points, np.full(len(points), 0.5))


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        fit_quadratic(np.full((9, 2), np.nan), np.zeros(9))
    with pytest.raises(ValueError, match=r"\(9, 2\) and \(8,\)"):
        fit_quadratic(np.zeros((9, 2)), np.zeros(8))


@pytest.mark.parametrize("num_genes", [1, 2, 5, 9])
def test_the_smallest_design_determines_the_quadratic_well(num_genes: int) -> None:
    low, high = np.zeros(num_genes), np.ones(num_genes)
    count = num_unknowns(num_genes)
    points = np.array(design(np.full((3, num_genes), 0.5), low, high, count, seed=4)[0])
    assert points.shape == (count, num_genes)
    fit = fit_quadratic(points, np.full(count, 0.5), link="identity")
    assert np.linalg.norm(fit.root, 2) < 30  # the least known combination of coefficients
    assert fit.dispersion is None
    assert np.isnan(fit.standard_errors(points)).all()


def test_sizes() -> None:
    assert [num_unknowns(n) for n in (1, 2, 8)] == [3, 6, 45]
    assert design_size(8, None) == 90
    assert design_size(8, 1000) == 90
    assert design_size(8, 100) == 75
    assert design_size(8, 50) == 45
    assert reference_directions(1, 100).shape == (1, 1)
    assert reference_directions(3, 100).shape == (91, 3)
    assert reference_directions(8, 200).sum(axis=1) == pytest.approx(1)


def test_spread_takes_the_gaps() -> None:
    front = np.stack([np.linspace(0, 1, 11), np.linspace(1, 0, 11)], axis=1)
    assert spread(front, front[[0, 10]], 1).tolist() == [5]
    assert set(spread(front, front[:0], 2).tolist()) == {0, 10}
    assert len(spread(front, front[:0], 99)) == 11


def test_map_finds_the_front_with_few_evaluations() -> None:
    landscape = Landscape(3, 2, seed=3)
    optimizer = build_optimizer("map", Problem(genes(3), 2, seed=0, evaluations=44), {"surrogate_generations": 30})
    asked, values = search(optimizer, landscape, 44)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 41)] * 3), axis=-1).reshape(-1, 3)
    true = landscape(grid)
    assert hypervolume(values, (0, 0)) > 0.97 * hypervolume(true, (0, 0))
    assert hypervolume(values[:20], (0, 0)) < 0.93 * hypervolume(true, (0, 0))
    late = [one for one in asked if one.note]
    assert len(late) == 24
    np.testing.assert_allclose(
        [[one.note["predicted_0"], one.note["predicted_1"]] for one in late], values[20:], atol=1e-6
    )
    distances = [np.abs(a.genotype - b.genotype).max() for i, a in enumerate(asked) for b in asked[:i]]
    assert min(distances) >= 1e-3 - 1e-12


def test_bounds_are_the_sampled_box_unless_asked_otherwise() -> None:
    landscape = Landscape(2, 2, seed=5)
    landscape.b += 6  # the best points lie far above the box
    narrow = Problem(genes(2, -3.0, 3.0), 2, seed=0, evaluations=40)
    quick = {"surrogate_generations": 20, "sampled_box": [0, 1]}
    asked, _ = search(build_optimizer("map", narrow, quick), landscape, 24)
    inside = np.array([proposal.genotype for proposal in asked])
    assert inside.min() >= 0
    assert inside.max() <= 1
    assert [one.note.get("extrapolated") for one in asked] == [None] * 12 + [0.0] * 12
    asked, _ = search(build_optimizer("map", narrow, quick | {"bounds": [-3, 3]}), landscape, 16)
    first_round = asked[12:]
    assert max(proposal.genotype.max() for proposal in first_round) > 1
    for proposal in first_round:
        outside = proposal.genotype.max() > 1 + 1e-9 or proposal.genotype.min() < -1e-9
        assert proposal.note["extrapolated"] == float(outside)


def test_failures_and_still_genes() -> None:
    still = (*genes(2), Gene("coefficient/still", low=0.3, high=0.3, initial=0.3))
    optimizer = build_optimizer("map", Problem(still, 1, seed=0, evaluations=30), {"surrogate_generations": 5})
    landscape = Landscape(3, 1, seed=0)
    for _ in range(4):
        batch = [optimizer.ask() for _ in range(8)]
        assert all(one.genotype[2] == 0.3 for one in batch)
        values = [tuple(landscape(one.genotype[None])[0].tolist()) for one in batch]
        optimizer.tell([Result(one.index, one.genotype, None if one.index % 3 else v) for one, v in zip(batch, values)])
    assert optimizer.ask().note


@pytest.mark.parametrize("name", ["map", "bayesian_map", "tpe", "gp"])
def test_known_evaluations_come_first(name: str) -> None:
    landscape, rng = Landscape(2, 1, seed=8), np.random.default_rng(0)
    known = rng.random((14, 2))
    settings = {"surrogate_generations": 10} if "map" in name else {"propose_initial": False, "num_initial_random": 5}
    warm = build_optimizer(name, Problem(genes(2), 1, seed=1, evaluations=4, warm_start=True), settings)
    warm.know(known, landscape(known))
    asked, values = search(warm, landscape, 4 if "map" in name else 1)
    best = landscape(np.stack(np.meshgrid(*[np.linspace(0, 1, 101)] * 2), axis=-1).reshape(-1, 2)).max()
    if "map" in name:
        assert all("predicted_0" in one.note for one in asked)
        assert values.max() > best - 1e-3
    else:
        cold = build_optimizer(name, Problem(genes(2), 1, seed=1, evaluations=4), settings)
        assert not np.array_equal(cold.ask().genotype, asked[0].genotype)


def test_others_cannot_take_over_evaluations() -> None:
    with pytest.raises(NotImplementedError, match="only from its own"):
        build_optimizer("cma_es", Problem(genes(2), 1, seed=1)).know(np.zeros((1, 2)), np.zeros((1, 1)))


def test_points_go_where_the_score_is_high() -> None:
    assert share_out(np.array([0.0, 0.3, 0.0]), 10, 0.07) == [0, 10, 0]
    assert share_out(np.array([0.1, 0.1, 0.1, 0.1]), 6, 0.07) == [2, 2, 1, 1]


def test_bayesian_map_samples_where_the_quadratic_is_wrong() -> None:
    """A metric that is a quadratic except near the first axis: the first adaptive points go there."""
    problem = Problem(genes(2), 1, seed=0, evaluations=40)
    optimizer = build_optimizer("bayesian_map", problem, {"num_design": 24, "population_size": 8, "link": "identity"})
    assert isinstance(optimizer, BayesianMap)
    adaptive: list[Proposal] = []
    for _ in range(3):
        batch = [optimizer.ask() for _ in range(8)]
        adaptive += [one for one in batch if "bin_score" in one.note]
        values = [one.genotype[0] + 3.0 * (one.genotype[1] < 0.2 * one.genotype[0]) for one in batch]
        optimizer.tell([Result(one.index, one.genotype, (float(v),)) for one, v in zip(batch, values)])
    assert len(adaptive) == 16
    # The second round goes elsewhere: the quadratic has then been bent towards the first one.
    assert max(math.atan2(one.genotype[1], one.genotype[0]) for one in adaptive[:8]) < math.pi / 8
    radii = [math.hypot(*one.genotype) for one in adaptive]
    assert min(radii) >= 0.2
    assert max(radii) <= 0.8


def test_experts_are_found_by_the_names_of_their_genes() -> None:
    named = [Gene(f"coefficient/{expert}/{part}") for expert in ("math", "code") for part in ("b0-9", "b10-19")]
    assert expert_genes(named) == {"math": (0, 1), "code": (2, 3)}
    assert expert_genes([Gene("x"), Gene("still", low=1, high=1), Gene("y")]) == {"x": (0,), "y": (2,)}


def test_nested_map_pairs_and_follows_the_preferences() -> None:
    """Four experts, each raising its own skill and hurting the others: the tree of three pairs ends at one merge."""
    space = tuple(Gene(f"coefficient/{name}/{part}", high=1.5) for name in "abcd" for part in ("low", "high"))
    hurt = np.full((4, 4), -0.6) + np.eye(4) * 3.1

    class Skills(Landscape):
        def __init__(self) -> None: ...

        def __call__(self, points: Array) -> Array:
            coefficients = points.reshape(-1, 4, 2).mean(axis=2)
            values: Array = expit(coefficients @ hurt.T - 1 + np.array([0, 0.1, 1, 1.1]))
            return values

    found = {}
    for label, preferences in {"first": [1, 0, 0, 0], "last": [0, 0, 0, 1]}.items():
        problem = Problem(space, 4, seed=0, evaluations=88)
        settings = {"preferences": preferences, "surrogate_generations": 15}
        optimizer = build_optimizer("nested_map", problem, settings)
        assert isinstance(optimizer, NestedMap)
        asked, values = search(optimizer, Skills(), 88)
        assert optimizer.is_complete
        plain = [one for one in asked if "chosen" not in one.note]  # a choice may be a point of its pair
        assert len({one.genotype.tobytes() for one in plain}) == len(plain)
        chosen = [one.index for one in asked if "chosen" in one.note]
        assert [one.note["pair"] for one in asked if "chosen" in one.note] == [0, 1, 2]
        found[label] = values[chosen[-1]]
        np.testing.assert_allclose(asked[0].genotype, [1, 1, 0, 0, 0, 0, 0, 0])
        pair = asked[4:8]  # the closest two of the experts' own skills: a and b, or c and d
        used = np.flatnonzero(np.any([one.genotype.reshape(4, 2).mean(axis=1) > 0 for one in pair], axis=0))
        assert used.tolist() in ([0, 1], [2, 3])
    assert found["first"][0] > found["last"][0] + 0.3
    assert found["last"][3] > found["first"][3] + 0.3


def complaints(name: str, settings: dict[str, object], problem: Problem) -> list[tuple[str, str]]:
    return [tuple(found) for found in validate_optimizer(name, settings, problem)]


def test_what_does_not_fit_is_told() -> None:
    problem = Problem(genes(8), 2, seed=0, evaluations=45)
    [(key, message)] = complaints("map", {}, problem)
    assert key == "budget.evaluations"
    assert message.startswith("a quadratic in 8 genes has 45 unknowns, so 45 evaluations leave none to use it.")
    large = Problem(genes(2, 0.0, 1.5), 2, seed=0, evaluations=100)
    settings = {"num_design": 5, "sampled_box": [2, 1], "bounds": [1.5, 3]}
    found = dict(complaints("map", settings, large))
    assert found["optimizer.num_design"] == "expected at least 6, the unknowns of a quadratic in 2 genes"
    assert found["optimizer.sampled_box"] == "expected [low, high] with low below high, got [2, 1]"
    assert "leaves nothing of gene 'coefficient/e0' (0 to 1.5)" in found["optimizer.bounds"]
    for bad in ([1], [0, "1"], 3, [0, True], [0, 1, 2]):
        assert complaints("map", {"bounds": bad}, large) == [
            ("optimizer.bounds", f"expected a list of 2 numbers or auto, got {bad!r}")
        ]
    category = (*genes(2), Gene("m", GeneKind.CATEGORY, choices=("a", "b")))
    assert "handles only real genes" in complaints("map", {}, Problem(category, 1, seed=0))[0][1]
    assert "up to 8 genes" in complaints("bayesian_map", {}, Problem(genes(9), 1, seed=0))[0][1]


def test_what_does_not_fit_nested_map_is_told() -> None:
    def first(space: tuple[Gene, ...], settings: dict[str, object] | None = None, evaluations: int = 500) -> str:
        return complaints("nested_map", settings or {}, Problem(space, 2, seed=0, evaluations=evaluations))[0][1]

    one = tuple(Gene(f"coefficient/math/{part}") for part in ("low", "high"))
    assert "needs at least 2, got 1" in first(one)
    assert "searches coefficient, density" in first((*genes(2), Gene("density/e0"), Gene("density/e1")))
    assert "'coefficient/e0' goes from 0.1 to 1" in first(genes(2, 0.1, 1.0))
    assert "expected 2 numbers" in first(genes(3), {"preferences": [1, 2, 3]})
    assert "the whole tree takes up to 45" in first(genes(3), evaluations=20)
