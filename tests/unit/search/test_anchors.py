"""Normalising and constraints: parsing with clear errors, and the arithmetic."""

import pytest

from evomerge.search.anchors import Anchor, AnchorScores, parse_anchor, parse_constraint
from evomerge.search.calibration import calibrate
from evomerge.terms import Objective

NAMES = ("zoo_math_en", "loss", "py/a")
EXPERTS = ("math", "code-2")
OBJECTIVES = (Objective("zoo_math_en"), Objective("loss", higher_is_better=False), Objective("py/a"))
SCORES = AnchorScores((0.1, -4.0, 2.0), {"math": (0.8, -3.0, 1.0), "code-2": (0.2, -2.0, 4.0)})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("zoo_math_en >= 0.9 * expert math", (0, True, 0.9, Anchor("expert", "math"))),
        ("zoo_math_en>=.5", (0, True, 0.5, Anchor("raw"))),
        ("loss <= 1.1*base", (1, False, 1.1, Anchor("base"))),
        ("py/a >= expert code-2", (2, True, 1.0, Anchor("expert", "code-2"))),
        ("  py/a   >=  1e-1 * expert ", (2, True, 0.1, Anchor("expert"))),
    ],
)
def test_constraints_that_make_sense(text: str, expected: tuple[object, ...]) -> None:
    found = parse_constraint(text, NAMES, EXPERTS, has_base=True)
    assert (found.objective, found.at_least, found.factor, found.anchor) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zoo_math_em >= 0.3", "no searched objective is called 'zoo_math_em'. Did you mean 'zoo_math_en'"),
        ("zoo_math_en > 0.3", "expected an objective, >= or <=, and a number"),
        ("zoo_math_en >=", "expected an objective, >= or <=, and a number"),
        ("zoo_math_en >= 0.9 * expert maths", "no expert is called 'maths'. Did you mean 'math'"),
        ("zoo_math_en >= 0.9 * raw", "expected base, expert or expert NAME, got 'raw'"),
        ("zoo_math_en >= 0.9 expert math", "expected an objective"),
        ("zoo_math_en >= nan", "expected raw, base, expert or expert NAME, got 'nan'"),
    ],
)
def test_constraints_that_do_not(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse_constraint(text, NAMES, EXPERTS, has_base=True)


def test_a_base_must_be_there() -> None:
    with pytest.raises(ValueError, match=r"no models\.base"):
        parse_anchor("base", EXPERTS, has_base=False)


def test_shares_of_raised_and_lowered_scores() -> None:
    normalise = (Anchor("expert"), Anchor("expert"), Anchor("base"))
    found = calibrate(OBJECTIVES, normalise, (), SCORES, (0.0, -10.0, 0.0))
    assert found.scales == (0.8, 2.0, 2.0)  # the best expert of each objective
    assert found.told((0.4, -2.5, 3.0)) == (0.5, -1.25, 1.5)
    assert found.told((0.8, -2.0, 2.0)) == (1.0, -1.0, 1.0)
    assert found.expert_fitness == ((1.0, -1.5, 0.5), (0.25, -1.0, 2.0))
    assert found.reference_point == (0.0, -5.0, 0.0)


def test_constraint_values_are_shares_of_the_bound() -> None:
    texts = ["zoo_math_en >= 0.5 * expert math", "loss <= 1.5 * base", "loss <= expert", "py/a >= 0"]
    constraints = [parse_constraint(text, NAMES, EXPERTS, True) for text in texts]
    found = calibrate(OBJECTIVES, (Anchor("raw"),) * 3, constraints, SCORES)
    assert found.scales == (1.0, 1.0, 1.0)
    assert found.thresholds == (0.4, 6.0, 2.0, 0.0)
    values = found.constraint_values((0.3, -9.0, -0.5), OBJECTIVES, constraints)
    assert values == pytest.approx((0.25, 0.5, 3.5, 0.5))
    assert found.constraint_values((0.4, -2.0, 0.0), OBJECTIVES, constraints)[::2] == (0.0, 0.0)


def test_nothing_is_divided_by_zero() -> None:
    scores = AnchorScores(None, {"math": (0.0, -1.0, 1.0)})
    with pytest.raises(ValueError, match="zoo_math_en: the best expert scores 0"):
        calibrate(OBJECTIVES, (Anchor("expert"), Anchor("raw"), Anchor("raw")), (), scores)
