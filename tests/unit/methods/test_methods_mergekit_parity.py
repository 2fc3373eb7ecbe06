"""The methods against what mergekit makes of the same tensors: stored values, and mergekit itself where installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from evomerge.methods.base import TensorContext
from evomerge.methods.catalogue import get_spec, load_method
from evomerge.recipes.mergekit_dialect import DIALECT

ROOT = Path(__file__).parents[3]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "mergekit_methods.json").read_text())


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_script", ROOT / "scripts" / "refresh_mergekit_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def merged(method: str, count: int, values: dict[str, Any]) -> torch.Tensor:
    base, *experts = (torch.tensor(tensor) for tensor in script().tensors(count))
    with_base = get_spec(method).needs_base or method in ("slerp", *script().WITH_BASE)
    declared = {entry.name: entry.default for entry in get_spec(method).hyperparameters if entry.structural}
    structural = declared | {name: value for name, value in values.items() if name in declared}
    if method.startswith(("dare", "della")):
        structural["rescale"] = "l1"
    if method.startswith("della"):
        structural["epsilon"] = [0.15] * count
    context = TensorContext("w", 0, tuple(f"expert{index}" for index in range(count)))
    state = load_method(method).prepare(base if with_base else None, experts, structural, context)
    out, values = torch.empty_like(base), {**DIALECT[method].implied, **values}
    load_method(method).apply(state, values, out)
    return out


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['method']}-{case['count']}")
def test_equals_stored_result(case: dict[str, Any]) -> None:
    expected = torch.tensor(case["merged"])
    got = merged(case["method"], case["count"], case["values"])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_stored_cases_are_the_scripts() -> None:
    stored = [(case["method"], case["count"], case["values"]) for case in GOLDEN["cases"]]
    assert stored == script().CASES
    assert {method for method, _, _ in stored} == set(DIALECT)


def test_equals_installed_mergekit() -> None:
    pytest.importorskip("mergekit")
    for method, count, values in script().CASES:
        expected = torch.tensor(script().mergekit_result(method, count, values))
        torch.testing.assert_close(merged(method, count, values), expected, rtol=0, atol=1e-5)
