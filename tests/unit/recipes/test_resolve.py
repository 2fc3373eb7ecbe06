from __future__ import annotations

import time

import pytest

from evomerge.errors import UserError
from evomerge.methods.catalogue import get_spec
from evomerge.recipes.mergekit_writer import llama_tensors
from evomerge.recipes.recipe import Merge, Rule, Source
from evomerge.recipes.resolve import knot_value, resolve_values

EXPERTS = (("math", Source("m")), ("spanish", Source("s")))


def merge(*rules: Rule, **others: tuple[Rule, ...]) -> Merge:
    parameters = (("coefficient", rules), *others.items())
    return Merge("ties", EXPERTS, Source("b"), parameters)


def coefficient(made: Merge, block: int | None, component: str = "mlp", name: str = "x", blocks: int = 10) -> object:
    return resolve_values(made, name, block, component, blocks)["coefficient"]


def test_the_first_matching_rule_wins() -> None:
    made = merge(
        Rule(1.0, blocks=(0, 5), component="attention", expert="math"),
        Rule(2.0, blocks=(0, 5)),
        Rule(3.0, contains="q_proj"),
        Rule(4.0, component="regex:k_p[r]oj$"),
        Rule(5.0, outside_blocks=True),
        Rule(6.0),
    )
    assert coefficient(made, 0, "attention") == (1.0, 2.0)
    assert coefficient(made, 4, "mlp") == (2.0, 2.0)
    assert coefficient(made, 5, "attention", "a.q_proj.weight") == (3.0, 3.0)
    assert coefficient(made, 5, "attention", "a.k_proj") == (4.0, 4.0)
    assert coefficient(made, None, "head") == (5.0, 5.0)
    assert coefficient(made, 9) == (6.0, 6.0)


def test_defaults_count_where_no_rule_does() -> None:
    made = merge(Rule(1.0), density=(Rule(0.3, expert="math"),))
    values = resolve_values(made, "x", 0, "mlp", 4)
    assert values["density"] == (0.3, get_spec("ties").hyperparameter("density").default)
    assert values["normalize"] is True
    assert values["lambda"] == 1.0


def test_a_required_value_must_be_there() -> None:
    made = Merge("slerp", EXPERTS, parameters=(("t", (Rule(1.0, blocks=(0, 2)),)),))
    assert resolve_values(made, "x", 1, "mlp", 4) == {"t": 1.0}
    with pytest.raises(UserError, match="slerp: the recipe gives no t for tensor x"):
        resolve_values(made, "x", 2, "mlp", 4)
    with pytest.raises(UserError, match="blocks 0 to 11, but the model has blocks 0 to 9"):
        coefficient(merge(Rule(1.0, blocks=(0, 12))), 0)


def test_gradients_are_mergekits() -> None:
    # t = index / (length - 1), x = t * (knots - 1); one block has t = 1, outside the blocks t = 0.
    knots = (0.0, 1.0, 4.0)
    assert [knot_value(knots, index, 5) for index in range(5)] == [0.0, 0.5, 1.0, 2.5, 4.0]
    assert knot_value(knots, 0, 1) == 4.0
    assert knot_value(knots, None, 5) == 0.0
    made = merge(Rule((0.0, 1.0), blocks=(2, 5), expert="math"), Rule((10.0, 20.0)))
    assert coefficient(made, 3, blocks=11) == (0.5, 13.0)
    assert coefficient(made, 4, blocks=11) == (1.0, 14.0)
    assert coefficient(made, None, blocks=11) == (10.0, 10.0)
    assert coefficient(made, 0, blocks=1 + 10) == (10.0, 10.0)


def test_equal_knots_are_a_scalar() -> None:
    for length in range(1, 40):
        for index in range(length):
            assert knot_value((0.1, 0.1, 0.1), index, length) == 0.1


def test_whole_numbers_become_floats_and_equal_merges_resolve_equally() -> None:
    first, second = merge(Rule(1)), merge(Rule(1.0))
    assert coefficient(first, 0) == coefficient(second, 0)
    assert all(type(value) is float for value in coefficient(first, 0))  # type: ignore[attr-defined]


def test_resolving_a_model_is_fast() -> None:
    rules = tuple(
        Rule(block + index / 10, (block, block + 1), expert=name)
        for block in range(30)
        for index, (name, _) in enumerate(EXPERTS)
    )
    tensors = llama_tensors(30)
    best = float("inf")
    for repeat in range(5):
        made = merge(*rules, Rule(0.5, outside_blocks=True), Rule(float(repeat)))
        start = time.process_time()
        values = [resolve_values(made, *tensor, 30)["coefficient"] for tensor in tensors]
        best = min(best, time.process_time() - start)
    assert values[1] == (0.0, 0.1)
    assert best < 0.02
