"""Hashes of whole models: one changed number is another model."""

import os
import shutil
from pathlib import Path

import pytest

from evomerge.engine.content_hash import ContentHashes
from evomerge.engine.sources import fingerprint
from evomerge.recipes.recipe import Source


@pytest.fixture
def model(micro_zoo: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that was written an hour ago; hashes are kept in a cache of its own."""
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    shutil.copytree(micro_zoo["micro-add"], folder)
    return folder


def flip_one_bit(path: Path, at: int) -> None:
    before = path.stat()
    with path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_one_flipped_bit_anywhere_is_noticed_also_with_the_old_time_stamp(model: Path) -> None:
    source, hashes = Source(str(model)), ContentHashes()
    first, sampled = hashes.of(source), fingerprint(source)
    assert hashes.are_current
    weights = model / "model.safetensors"
    size = weights.stat().st_size
    between = size // 2
    flip_one_bit(weights, between)
    while fingerprint(source) != sampled:  # a place that samples do not look at
        flip_one_bit(weights, between)
        between += 4096
        flip_one_bit(weights, between)
    assert not hashes.are_current
    assert ContentHashes().of(source) != first
    flip_one_bit(weights, between)
    assert ContentHashes().of(source) == first
    flip_one_bit(model / "tokenizer.json", 40)
    assert ContentHashes().of(source) != first


def test_hashes_of_settled_files_are_kept_and_a_damaged_one_is_computed_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.engine.content_hash._SETTLED_SECONDS", -1.0)
    source = Source(str(model))
    first = ContentHashes().of(source)
    kept = sorted((tmp_path / "cache" / "fingerprints").glob("*.json"))
    assert len(kept) == len([path for path in model.iterdir() if path.suffix not in (".md", ".log")])
    for path in kept:
        text = path.read_text()
        place = text.index('"sha256": "') + 11
        path.write_text(text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :])
    assert ContentHashes().of(source) == first
    kept[0].write_text("{")
    assert ContentHashes().of(source) == first


def test_a_file_that_was_just_written_is_not_remembered(model: Path, tmp_path: Path) -> None:
    ContentHashes().of(Source(str(model)))
    assert not list((tmp_path / "cache" / "fingerprints").glob("*.json"))
