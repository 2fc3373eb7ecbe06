"""The estimators on outcomes of real merges: a small part of the benchmark, and what docs/estimators.md says of it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
        import bench_estimators

        patch.setattr(bench_estimators, "COUNTS", (10,))
        patch.setattr(bench_estimators, "FITTED", (30,))
        yield bench_estimators


def test_anchors_and_the_combination_are_nearer_than_the_mean_of_random_documents(bench: ModuleType) -> None:
    recording = bench.load_recording(bench.recording_path("zoo3"))
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for (_, kind, name, _), values in bench.measurements(recording, 4):
        found.setdefault((kind, name), []).append(values)
    squared = {key: np.mean([values[0] for values in rows]) for key, rows in found.items()}
    tau = {key: np.mean([values[1] for values in rows]) for key, rows in found.items()}
    held = {key: np.mean([values[4] for values in rows]) for key, rows in found.items()}
    plain = squared["random", "mean"]
    assert squared["anchors", "gp-IRT"] < 0.5 * plain
    assert squared["random", "p-IRT"] < 0.7 * plain
    assert squared["random", "difference"] < 0.9 * plain
    assert tau["anchors", "mean"] > tau["random", "mean"]
    assert min(held.values()) > 0.93


def test_the_table_is_printed(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    bench.report("zoo3", 1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * 6
    assert len({line.count("|") for line in lines}) == 1
