"""A method in a user's file: the one of the documentation, and what is said when something is wrong with it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from evomerge.errors import UserError
from evomerge.methods.base import TensorContext
from evomerge.methods.catalogue import get_spec, load_method
from evomerge.methods.own_method import load_own_spec, source_fingerprint

PAGE = Path(__file__).parents[3] / "docs" / "own_method.md"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    path = tmp_path / "my_methods.py"
    path.write_text(code.group(1))
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield path
    forget()


def forget() -> None:
    load_own_spec.cache_clear()
    sys.modules.pop("my_methods", None)


def test_the_documented_method_works(module: Path) -> None:
    spec = get_spec("my_methods:MEDIAN")
    assert spec.name == "my_methods:MEDIAN"
    base = torch.zeros(2, 3)
    experts = [torch.full((2, 3), value) for value in (1.0, -4.0, 2.0)]
    method, out = load_method(spec.name), torch.empty(2, 3)
    state = method.prepare(base, experts, {}, TensorContext("w", 0, ("a", "b", "c")))
    method.apply(state, {"lambda": 0.5}, out)
    assert torch.equal(out, torch.full((2, 3), 0.5))


def test_its_fingerprint_is_that_of_the_file(module: Path) -> None:
    before = source_fingerprint("my_methods:MEDIAN")
    module.write_text(module.read_text() + "\n# changed\n")
    assert source_fingerprint("my_methods:MEDIAN") != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not_there:MEDIAN", "cannot import 'not_there'.*import_paths"),
        ("my_methods:MEDIUM", "'my_methods' has no MethodSpec 'MEDIUM'. Did you mean 'MEDIAN'"),
        ("my_methods:Median", "has no MethodSpec 'Median'"),
    ],
)
def test_what_is_wrong_is_said(module: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_spec(name)
