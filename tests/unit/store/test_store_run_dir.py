import os
import subprocess
import sys

import pytest

from evomerge.errors import UserError
from evomerge.store.run_dir import RunDir


def start(path, started) -> None:
    run_dir = RunDir.create(path)
    run_dir.event_log().append(started)
    run_dir.close()


def test_a_new_run_has_its_paths_and_its_lock(tmp_path):
    run_dir = RunDir.create(tmp_path / "runs" / "a")
    assert run_dir.exclusive
    assert run_dir.scores_dir.is_dir()
    assert run_dir.best_recipe_path.parent.is_dir()
    names = {
        path.relative_to(run_dir.path).as_posix()
        for path in (
            run_dir.experiment_path,
            run_dir.manifest_path,
            run_dir.events_path,
            run_dir.scores_dir,
            run_dir.front_path,
            run_dir.best_recipe_path,
            run_dir.study_path,
            run_dir.summary_path,
            run_dir.report_path,
            run_dir.log_path,
        )
    }
    assert names == {
        "experiment.yaml",
        "manifest.json",
        "events.jsonl",
        "scores",
        "front.json",
        "best/recipe.yaml",
        "study.journal",
        "summary.json",
        "report.html",
        "log.txt",
    }


def test_an_existing_run_is_refused_and_untouched(tmp_path, started):
    start(tmp_path / "a", started)
    before = (tmp_path / "a" / "events.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"a run of this name exists.*evomerge resume .*another name"):
        RunDir.create(tmp_path / "a")
    assert (tmp_path / "a" / "events.jsonl").read_bytes() == before
    RunDir.open(tmp_path / "a", exclusive=True).close()


def test_a_run_that_never_started_is_taken_over(tmp_path):
    run_dir = RunDir.create(tmp_path / "a")
    run_dir.experiment_path.write_text("name: old\n")
    run_dir.close()
    again = RunDir.create(tmp_path / "a")
    assert not again.experiment_path.exists()


def test_overwrite_removes_only_a_run(tmp_path, started):
    start(tmp_path / "a", started)
    (tmp_path / "a" / "study.journal.lock").write_text("")
    (tmp_path / "a" / "scores" / "c1.npz").write_text("")
    run_dir = RunDir.create(tmp_path / "a", overwrite=True)
    assert run_dir.event_log().read() == []
    assert list(run_dir.scores_dir.iterdir()) == []
    assert not (run_dir.path / "study.journal.lock").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_are_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        RunDir.create(tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_too_little_room_is_said_before_any_work(tmp_path):
    with pytest.raises(UserError, match="MiB free"):
        RunDir.create(tmp_path / "a", room_bytes=2**60)
    RunDir.create(tmp_path / "a")


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="cannot make the run directory"):
        RunDir.create(tmp_path / "a")
    with pytest.raises(UserError, match="cannot make the run directory"):
        RunDir.create(tmp_path / "a" / "b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_parent_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot make the run directory"):
        RunDir.create(tmp_path / "a")


def test_opening_nothing_lists_the_runs_beside_it(tmp_path, started):
    start(tmp_path / "tuesday", started)
    with pytest.raises(UserError, match=r"no evomerge run here.*Runs beside it: tuesday"):
        RunDir.open(tmp_path / "wednesday")


def test_readers_need_no_lock(tmp_path, started):
    start(tmp_path / "a", started)
    writer = RunDir.open(tmp_path / "a", exclusive=True)
    reader = RunDir.open(tmp_path / "a")
    assert reader.event_log().read() == [started]
    assert not reader.event_log().writable
    with pytest.raises(UserError, match=f"another run is using this directory.*{os.getpid()}"):
        RunDir.open(tmp_path / "a", exclusive=True)
    writer.close()
    RunDir.open(tmp_path / "a", exclusive=True).close()


ORPHAN = """
import os, signal, sys, time
from evomerge.store.run_dir import RunDir
run_dir = RunDir.create(sys.argv[1])
if os.fork() == 0:
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)
time.sleep(60)
"""


def test_a_killed_run_frees_its_lock_though_a_child_of_it_lives(tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, tmp_path / "a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert run.stdout.readline() == b"ready\n"
    with pytest.raises(UserError, match=f"process {run.pid} on"):
        RunDir.create(tmp_path / "a")
    run.kill()
    run.wait()
    RunDir.create(tmp_path / "a").close()
    run.stdin.close()
    assert run.stdout.read() == b""
    run.stdout.close()
