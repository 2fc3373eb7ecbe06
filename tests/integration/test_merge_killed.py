"""Merges to disk that are killed with SIGKILL, started again, raced and starved of disk."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.engine import merge_to_disk as merging
from evomerge.engine.merge_to_disk import merge_to_disk
from evomerge.engine.output_directory import JOURNAL_NAME
from evomerge.errors import MergeFailed, UserError
from evomerge.recipes.recipe import Merge, Recipe, Rule, Source

SHARD_BYTES = 70_000
NUM_TENSORS = 24  # two to a shard

# Processes start from one that has imported everything and merged nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["evomerge.engine.merge_to_disk", "evomerge.methods.ties"])


def stop(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def merge_and_stop(recipe: Recipe, out: Path, limit: float) -> None:
    """Merge, and kill the process when that share is written; 0 = at the end, before the directory appears."""
    if limit == 0:
        merging.copy_other_files = stop  # type: ignore[assignment]
    told = out.parent.parent / f"told-{os.getpid()}"
    try:
        merge_to_disk(
            recipe, out, lambda done, total: stop() if 0 < limit <= done / total else None, shard_bytes=SHARD_BYTES
        )
    except UserError as error:
        told.write_text(str(error))
        sys.exit(1)


def save(folder: Path, seed: int, **changes: torch.Tensor) -> Source:
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"part.{number}.net.weight": torch.randn(100, 80, generator=generator) for number in range(NUM_TENSORS)}
    save_file({**tensors, **changes}, folder / "model.safetensors")
    return Source(str(folder))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    experts = tuple((f"m{seed}", save(tmp_path / "models" / str(seed), seed)) for seed in (1, 2))
    merge = Merge("ties", experts, save(tmp_path / "models" / "0", 0), (("coefficient", (Rule(0.5),)),))
    return Recipe(merge)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


def run_killed(recipe: Recipe, out: Path, limit: float) -> None:
    process = PROCESSES.Process(target=merge_and_stop, args=(recipe, out, limit))
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL


def resumed(recipe: Recipe, out: Path, caplog: pytest.LogCaptureFixture) -> tuple[int, str]:
    """Merge; returns the bytes that were there already, and what was logged."""
    steps: list[int] = []
    caplog.clear()
    merge_to_disk(recipe, out, lambda done, total: steps.append(done), shard_bytes=SHARD_BYTES)
    assert steps == sorted(steps)
    return steps[0], caplog.text


def assert_complete(recipe: Recipe, out: Path) -> None:
    whole = merge_to_disk(recipe, out.parent.parent / "whole", shard_bytes=SHARD_BYTES)
    ours, theirs = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in (out, whole))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if name != "README.md" and ours[name] != theirs[name]] == []
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize(("limit", "kept"), [(0.04, 0), (0.3, 4), (0.9, 11), (0, 12)])
def test_killed_merge_goes_on(
    limit: float, kept: int, recipe: Recipe, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = place / "out"
    run_killed(recipe, out, limit)
    assert not out.exists()
    partial = place / ".out.partial"
    times = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")}
    done, text = resumed(recipe, out, caplog)
    assert done == kept * 2 * 32_000
    assert ("going on with" in text) == (kept > 0)
    untouched = [name for name, time in times.items() if (out / name).stat().st_mtime_ns == time]
    assert len(untouched) == kept
    assert_complete(recipe, out)


def test_killed_twice(recipe: Recipe, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = place / "out"
    run_killed(recipe, out, 0.3)
    run_killed(recipe, out, 0.7)
    done, _ = resumed(recipe, out, caplog)
    assert done == 8 * 64_000
    assert_complete(recipe, out)


def test_other_recipe_or_sources_start_over(recipe: Recipe, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = place / "out"
    run_killed(recipe, out, 0.5)
    assert isinstance(recipe.model, Merge)
    other = Recipe(Merge("ties", recipe.model.experts, recipe.model.base, (("coefficient", (Rule(0.7),)),)))
    run_killed(other, out, 0.5)
    done, text = resumed(recipe, out, caplog)
    assert (done, "starting over" in text) == (0, True)
    assert_complete(recipe, out)


def test_changed_source_starts_over(recipe: Recipe, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = place / "out"
    run_killed(recipe, out, 0.5)
    path = Path(recipe.sources[1].model) / "model.safetensors"
    with path.open("r+b") as stream:  # a byte between the sampled ones
        stream.seek(path.stat().st_size // 2 + 5000)
        stream.write(b"\x01")
    done, text = resumed(recipe, out, caplog)
    assert (done, "starting over" in text) == (0, True)
    assert_complete(recipe, out)


@pytest.mark.parametrize("damage", ["byte", "truncated", "gone", "link", "journal"])
def test_damaged_shards_are_written_again(
    damage: str, recipe: Recipe, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = place / "out"
    run_killed(recipe, out, 0.5)
    partial = place / ".out.partial"
    shard = sorted(partial.glob("*.safetensors"))[1]
    data = bytearray(shard.read_bytes())
    if damage == "byte":
        data[-5] ^= 1
        shard.write_bytes(data)
    elif damage == "truncated":
        shard.write_bytes(data[:-1])
    elif damage == "gone":
        shard.unlink()
    elif damage == "link":
        shard.unlink()
        shard.symlink_to(sorted(partial.glob("*.safetensors"))[0])
    else:
        journal = partial / JOURNAL_NAME
        journal.write_bytes(journal.read_bytes()[:-20])
    done, _ = resumed(recipe, out, caplog)
    assert done == 5 * 64_000
    assert_complete(recipe, out)


def test_bad_values_leave_nothing(recipe: Recipe, place: Path) -> None:
    source = recipe.sources[2]
    broken = torch.ones(100, 80)
    broken[3, 4] = float("nan")
    save(Path(source.model), 2, **{"part.20.net.weight": broken})
    with pytest.raises(MergeFailed, match=r"models/2: tensor part\.20\.net\.weight holds NaN .* download it again"):
        merge_to_disk(recipe, place / "out", shard_bytes=SHARD_BYTES)
    assert list(place.iterdir()) == []


def test_two_processes_do_not_write_one_target(recipe: Recipe, place: Path) -> None:
    out = place / "out"

    def second(done: int, total: int) -> None:
        if done == 64_000:
            with pytest.raises(UserError, match=f"process {os.getpid()} is writing there"):
                merge_to_disk(recipe, out, shard_bytes=SHARD_BYTES)

    merge_to_disk(recipe, out, second, shard_bytes=SHARD_BYTES)
    assert_complete(recipe, out)


def test_processes_that_race_for_one_target(recipe: Recipe, place: Path) -> None:
    out = place / "out"
    racers = [PROCESSES.Process(target=merge_and_stop, args=(recipe, out, -1)) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(100)
    assert sorted(str(racer.exitcode) for racer in racers) == ["0", "1", "1"]
    for path in place.parent.glob("told-*"):
        assert "is writing there" in path.read_text() or "not empty" in path.read_text()
    assert_complete(recipe, out)


@pytest.mark.parametrize("kept", [0, 4])
def test_full_disk(
    kept: int, recipe: Recipe, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = merging.ShardWriter
    original = writer._append

    def append(self: Any, data: Any) -> None:
        if self._open_shard is self._shards[kept] and len(data) > 10_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, data)

    out = place / "out"
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_append", append)
        told = "4 finished shards .* are kept in .*again to go on" if kept else "nothing is left behind"
        with pytest.raises(UserError, match=f"the disk became full while writing; {told}"):
            merge_to_disk(recipe, out, shard_bytes=SHARD_BYTES)
    left = sorted(path.name for path in place.rglob("*"))
    assert len([name for name in left if name.endswith(".safetensors")]) == kept
    assert bool(left) == bool(kept)
    done, _ = resumed(recipe, out, caplog)
    assert done == kept * 64_000
    assert_complete(recipe, out)


def test_free_space_is_checked_with_what_is_there(recipe: Recipe, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.engine import output_directory

    out = place / "out"
    run_killed(recipe, out, 0.5)
    usage = output_directory.shutil.disk_usage(place)
    free = 6 * 65_000 + output_directory.SPARE_BYTES  # enough for the rest, not for everything
    monkeypatch.setattr(output_directory.shutil, "disk_usage", lambda path: usage._replace(free=free))
    with pytest.raises(UserError, match="free some space"):
        merge_to_disk(recipe, place / "other", shard_bytes=SHARD_BYTES)
    merge_to_disk(recipe, out, shard_bytes=SHARD_BYTES)
    assert len(list(out.glob("*.safetensors"))) == 12


def test_interrupted_merge_keeps_its_shards(recipe: Recipe, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 5 * 64_000:
            raise KeyboardInterrupt

    out = place / "out"
    with pytest.raises(KeyboardInterrupt):
        merge_to_disk(recipe, out, interrupt, shard_bytes=SHARD_BYTES)
    assert "5 finished shards" in caplog.text
    assert resumed(recipe, out, caplog)[0] == 5 * 64_000
    assert_complete(recipe, out)


def test_command_line_is_killed_and_goes_on(recipe: Recipe, place: Path, tmp_path: Path) -> None:
    from evomerge.recipes.recipe_yaml import format_recipe

    (tmp_path / "recipe.yaml").write_text(format_recipe(recipe))
    command = [sys.executable, "-m", "evomerge", "merge", tmp_path / "recipe.yaml", place / "out", "--hash", "full"]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not (place / ".out.partial").exists() and not (place / "out").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    if not (place / "out").exists():
        subprocess.run(command, check=True, capture_output=True)
    text = (place / "out" / "evomerge_recipe.yaml").read_text()
    digest = hashlib.sha256((Path(recipe.sources[0].model) / "model.safetensors").read_bytes()).hexdigest()
    assert digest in text
    assert digest[:16] in (place / "out" / "README.md").read_text()
    assert (
        load_file(place / "out" / "model.safetensors").keys()
        == load_file(Path(recipe.sources[0].model) / "model.safetensors").keys()
    )
