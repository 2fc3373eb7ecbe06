"""What a search space refuses, and what it says then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import InvalidInput
from evomerge.recipes.recipe import Source
from evomerge.spaces.space import SpaceModels
from evomerge.spaces.space_yaml import build_space, load_space

EXPERTS = tuple((name, Source(f"zoo:{name}")) for name in ("math", "spanish", "capitals"))
MODELS = SpaceModels(Source("zoo:base"), EXPERTS, 30, 7, "bfloat16")
COEFFICIENT = {"low": 0.0, "high": 1.5, "init": 0.7}

TIES = {"method": "ties", "parameters": {"coefficient": COEFFICIENT}, "fixed": {"normalize": False}}


def changed(**keys: Any) -> dict[str, Any]:
    return {"kind": "parameter_space", **TIES, **keys}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"method": "ties"}, "f.yaml: kind: missing; it is required."),
        ({"kind": "parameter_spce"}, "f.yaml: kind: unknown kind 'parameter_spce'. Did you mean 'parameter_space'?"),
        (changed(method="tise"), "f.yaml: method: "),
        (changed(methods="ties"), "f.yaml: methods: unknown key. Did you mean 'method'?"),
        (changed(method=[]), "f.yaml: method: "),
        (changed(method=["ties", "ties"]), "listed twice"),
        (changed(parameters={}), "f.yaml: parameters: "),
        (changed(parameters={"coeficient": 1}), "ties has no such parameter. Did you mean 'coefficient'?"),
        (changed(parameters={"density": 0.5}), "nothing is searched"),
        (
            changed(parameters={"coefficient": {"low": 1, "hihg": 2}}),
            "coefficient.hihg: unknown key. Did you mean 'high'?",
        ),
        (changed(parameters={"coefficient": {"low": 2, "high": 1}}), "low must be below high, got low 2 and high 1"),
        (
            changed(parameters={"coefficient": {"low": "a"}}),
            "parameters.coefficient.low: expected a valid number, got 'a'",
        ),
        (
            changed(parameters={"coefficient": {"low": True}}),
            "parameters.coefficient.low: expected a valid number, got True",
        ),
        (changed(parameters={"coefficient": {**COEFFICIENT, "init": 3}}), "must lie between low 0 and high 1.5, got 3"),
        (changed(parameters={"density": {"low": 0.0}}), "density.low: expected a number above 0, at most 1, got 0"),
        (changed(parameters={"density": {"share": ["layers"]}}), "parameters.density.share[0]: expected 'blocks'"),
        (changed(parameters={"coefficient": {**COEFFICIENT, "choices": [1, 2]}}), "is a number; give low and high"),
        (changed(parameters={"lambda": {"per": "expert"}}), "lambda is one value per merge"),
        (changed(fixed={"normalize": "no"}), "fixed.normalize: expected true or false, got 'no'"),
        (changed(fixed={"coefficient": 1, "normalize": False}), "fixed.coefficient: is also under parameters"),
        (changed(fixed={"lambda": {"math": 1}, "normalize": False}), "fixed.lambda: lambda is one value per merge"),
        (changed(groups={"blocks": 0}), "f.yaml: groups.blocks: "),
        (changed(groups={"blocks": "all"}), "f.yaml: groups.blocks: "),
        (changed(groups={"blocks": [[0, 4], [6, 9]]}), "expected one from block 5, got [6, 9]"),
        (changed(groups={"components": ["atention"]}), "unknown component 'atention'. Did you mean 'attention'?"),
        (changed(groups={"components": {"x": "("}}), "'(' is not a regular expression"),
        (changed(groups={"layers": 3}), "f.yaml: groups.layers: unknown key"),
        (changed(smooth=True), "smooth needs a number of knots, 2 or more, got 1"),
        (changed(smooth=True, groups={"blocks": "each"}), "smooth needs a number of knots"),
        (changed(fixed={"normalize": True}), "only the ratios of the coefficients count"),
        (changed(parameters={"coefficient": {"share": ["experts"]}}, fixed={}), "would change nothing"),
        (changed(parameters={"coefficient": COEFFICIENT, "normalize": {}}, fixed={}), "fix it to true or false"),
        (changed(parameters={"coefficient": COEFFICIENT, "lambda": {}}), "a whole line of genotypes gives one model"),
        (changed(method=["ties", "task_arithmetic"], fixed={}), "fixed.normalize: missing; ties divides by the sum"),
        ({"kind": "parameter_space", "method": "dare_linear", "parameters": {"rescale": {"low": 1}}}, "give choices"),
        (
            {"kind": "parameter_space", "method": "dare_linear", "parameters": {"rescale": {"choices": ["l2", "l1"]}}},
            "expected one of inv_density, l1, none, got 'l2'",
        ),
        ({"kind": "parameter_space", "method": "slerp", "parameters": {"t": 0.5}}, "nothing is searched"),
    ],
)
def test_what_a_file_may_not_say(entries: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_space(entries, "f.yaml")
    assert expected in str(caught.value)
    assert all(problem.where.startswith("f.yaml") for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("entries", "models", "expected"),
    [
        (changed(), replace(MODELS, base=None), "ties needs a base model"),
        (changed(groups={"blocks": 31}), MODELS, "31 groups of blocks are more than the model's 30 blocks"),
        (changed(groups={"blocks": [[0, 4], [5, 9]]}), MODELS, "end at block 9, the model's last block is 29"),
        (
            {"kind": "parameter_space", "method": "slerp", "parameters": {"t": {"low": 0.0}}},
            MODELS,
            "slerp takes at most 2 experts, the experiment has 3",
        ),
        (
            changed(parameters={"coefficient": {"low": 0.5, "high": 1.5, "init": "1/n"}}),
            MODELS,
            "1/n is 0.333333 here, outside 0.5 to 1.5",
        ),
        (
            changed(parameters={"coefficient": {**COEFFICIENT, "init": {"math": 1, "spansh": 1}}}),
            MODELS,
            "expected one value for each of math, spanish, capitals; got math, spansh",
        ),
        (
            changed(fixed={"density": {"math": 1}, "normalize": False}),
            MODELS,
            "fixed.density: expected one value for each",
        ),
        (
            {"kind": "parameter_space", "method": "linear", "parameters": {"coefficient": {"init": "1/n"}}},
            replace(MODELS, experts=EXPERTS[:1]),
            "a single expert has no ratio",
        ),
        (changed(init_from="none.yaml"), MODELS, "there is no such file"),
    ],
)
def test_what_does_not_fit_the_models(entries: dict[str, Any], models: SpaceModels, expected: str) -> None:
    config = load_space(entries, "f.yaml")
    with pytest.raises(InvalidInput) as caught:
        build_space(config, models)
    assert expected in str(caught.value)


def test_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="Did you mean 'ties_whole_model'"):
        load_space("ties_whole_modl", "f.yaml: search_space")
    with pytest.raises(InvalidInput, match="there is no such file"):
        load_space("./none.yaml", "f.yaml", tmp_path)
    (tmp_path / "own.yaml").write_text("kind: parameter_space\nmethod: ties\nparameters: {coefficient: 1}\nx: 1\n")
    with pytest.raises(InvalidInput) as caught:
        load_space("own.yaml", "f.yaml", tmp_path)
    assert str(tmp_path / "own.yaml") in str(caught.value)


def test_all_problems_at_once() -> None:
    entries = changed(
        groups={"components": ["atention"]}, parameters={"coefficient": {**COEFFICIENT, "init": 3}, "x": 1}
    )
    with pytest.raises(InvalidInput) as caught:
        load_space(entries, "f.yaml")
    assert {problem.where for problem in caught.value.problems} == {
        "f.yaml: groups.components",
        "f.yaml: parameters.coefficient.init",
        "f.yaml: parameters.x",
    }
