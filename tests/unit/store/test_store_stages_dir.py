"""The folder of a staged run: made whole, locked, replaced only where everything in it is evomerge's."""

import json
from pathlib import Path

import pytest

from evomerge.errors import UserError
from evomerge.store.stage_list import has_run, is_staged, read_stages, stage_path
from evomerge.store.stages_dir import StagesDir

NAMES = ["ps", "dfs"]


def made(path: Path, *begun: str) -> Path:
    """A staged run whose named stages have begun."""
    StagesDir.create(path, NAMES, "name: x\n").close()
    for stage in read_stages(path):
        if stage.name in begun:
            stage.path.mkdir()
            (stage.path / "events.jsonl").write_text("{}\n")
    return path


def test_a_new_run_lists_its_stages_and_is_locked(tmp_path: Path) -> None:
    folder = StagesDir.create(tmp_path / "run", NAMES, "name: x\n")
    assert [(stage.name, stage.path.name) for stage in folder.stages] == [("ps", "1-ps"), ("dfs", "2-dfs")]
    assert folder.experiment_path.read_text() == "name: x\n"
    assert is_staged(folder.path)
    assert has_run(folder.path)
    with pytest.raises(UserError, match="another run is using"):
        StagesDir.open(folder.path)
    folder.close()
    StagesDir.open(folder.path).close()


def test_a_start_that_was_killed_early_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text("half")
    (tmp_path / "run.lock").touch()
    assert not has_run(tmp_path)
    StagesDir.create(tmp_path, NAMES, "name: x\n").close()
    assert (tmp_path / "experiment.yaml").read_text() == "name: x\n"


def test_only_an_own_run_is_replaced(tmp_path: Path) -> None:
    run = made(tmp_path / "run", "ps")
    with pytest.raises(UserError, match="evomerge resume"):
        StagesDir.create(run, NAMES, "name: y\n")
    (run / "1-ps" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        StagesDir.create(run, NAMES, "name: y\n", overwrite=True)
    assert has_run(run / "1-ps")
    (run / "1-ps" / "notes.txt").unlink()
    StagesDir.create(run, ["other"], "name: y\n", overwrite=True).close()
    assert sorted(path.name for path in run.iterdir()) == ["experiment.yaml", "run.lock", "stages.json"]
    (run / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"thesis\.tex"):
        StagesDir.create(run, NAMES, "name: y\n", overwrite=True)


def test_a_plain_run_is_not_replaced_by_a_staged_one(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="no evomerge run of several stages"):
        StagesDir.create(tmp_path, NAMES, "name: x\n", overwrite=True)
    assert (tmp_path / "events.jsonl").exists()


@pytest.mark.parametrize(("begun", "meant"), [((), "1-ps"), (("ps",), "1-ps"), (("ps", "dfs"), "2-dfs")])
def test_the_run_means_its_last_stage_that_has_begun(tmp_path: Path, begun: tuple[str, ...], meant: str) -> None:
    run = made(tmp_path / "run", *begun)
    assert stage_path(run).name == meant
    if "dfs" not in begun:
        with pytest.raises(UserError, match="dfs has not begun"):
            stage_path(run, "dfs")


@pytest.mark.parametrize(
    "text", ["", "{}", '{"v": 2, "stages": []}', '{"v": 1, "stages": []}', '{"v": 1, "stages": [3]}', "[1]"]
)
def test_a_damaged_list_is_told(tmp_path: Path, text: str) -> None:
    run = made(tmp_path / "run")
    (run / "stages.json").write_text(text)
    with pytest.raises(UserError, match="the list of stages is damaged"):
        read_stages(run)


def test_a_list_names_folders_of_its_own_run_only(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    entries = {"v": 1, "stages": [{"name": "ps", "folder": "../../elsewhere"}]}
    (run / "stages.json").write_text(json.dumps(entries))
    assert read_stages(run)[0].path == run / "elsewhere"
