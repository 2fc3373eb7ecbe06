from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from evomerge.errors import InvalidInput
from evomerge.yaml_files import format_flow, parse_yaml_mapping, pydantic_problems, read_yaml_mapping


def problem(text: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        parse_yaml_mapping(text, "f.yaml")
    return str(caught.value)


def test_scalars_are_what_they_look_like() -> None:
    text = "a: 1e-3\nb: no\nc: 2024-01-01\nd: 1:30\ne: .5\nf: ~\ng:\nh: -1.5e+3\ni: 010\nj: true\nk: 1/n\nl: 0x1F"
    assert parse_yaml_mapping(text, "f") == {
        "a": 0.001, "b": "no", "c": "2024-01-01", "d": "1:30", "e": 0.5, "f": None, "g": None, "h": -1500.0,
        "i": 10, "j": True, "k": "1/n", "l": 31,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "f.yaml: the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- a", "found a list"),
        ("hello", "found text"),
        ("a: 1\nb: 2\na: 3", "f.yaml, line 3: the key 'a' occurs twice"),
        ("a: {x: 1, x: 2}", "the key 'x' occurs twice"),
        ("1: 2", "keys are text, got '1'"),
        ("a: [1,", "not valid YAML"),
        ("a: 1\n---\nb: 2", "several YAML documents"),
        ("a: !!python/object/apply:os.system [ls]", "tags such as"),
        ("a: !function x.y", "tags such as '!function'"),
        ("a: &a [*a]", "contains itself"),
        ("a\x00b: 1", "not a text file"),
        ("a: *unknown", "undefined alias"),
    ],
)
def test_what_is_refused(text: str, expected: str) -> None:
    assert expected in problem(text)


def test_files(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_text("a: {b: [1, 2]}\n")
    assert read_yaml_mapping(good) == {"a": {"b": [1, 2]}}
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(bytes(range(256)))
    for path, expected in [
        (tmp_path / "none.yaml", "there is no such file"),
        (tmp_path, "found a folder"),
        (binary, "not a text file"),
    ]:
        with pytest.raises(InvalidInput, match=expected) as caught:
            read_yaml_mapping(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "12e5678", "1e5", "no", "yes", "null", "true", "2024-01-01", "1:30", "a: b", "zoo:x", "", "- a", "{x}", "é",
        "#", 0.1, 1e-7, 1e22, -0.0, 3, True, None, [1.5, "y"], {"on": [0.30000000000000004, "off"], "a b": {"c": "~"}},
    ],
)  # fmt: skip
def test_flow_reads_back_in_any_reader(value: Any) -> None:
    for wrapped in (value, [value], {"key": value}):
        text = f"key: {format_flow(wrapped)}"
        assert "\n" not in text
        assert parse_yaml_mapping(text, "f")["key"] == wrapped
        assert yaml.safe_load(text)["key"] == wrapped


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    low: float
    high: float = 1.0


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    method: str | list[str]
    parameters: dict[str, float | Inner] = {}
    rows: list[Inner] = []


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"metod": "a"}, ["f: method: missing; it is required", "f: metod: unknown key. Did you mean 'method'?"]),
        (
            {"method": "a", "parameters": {"w": {"low": 1, "hihg": 2}}},
            ["f: parameters.w.hihg: unknown key. Did you mean 'high'?"],
        ),
        (
            {"method": "a", "rows": [{"low": 1}, {"lw": 2}]},
            ["f: rows[1].low: missing; it is required", "f: rows[1].lw: unknown key. Did you mean 'low'?"],
        ),
        ({"method": [1]}, ["f: method[0]: expected a valid string, got 1"]),
    ],
)
def test_pydantic_errors_become_problems(entries: dict[str, Any], expected: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(entries)
    assert [str(item) for item in pydantic_problems(caught.value, "f", Outer)] == expected
