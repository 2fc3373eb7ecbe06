"""The evaluation cache on disk: what is read back is what was written, or nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evomerge.evaluation.score_cache import ScoreCache, cache_use, clear_entries

VALUE = [[[-1.25, True], [-0.1 - 0.2, False]], ["text\n", "ü"]]


def entry(folder: Path) -> Path:
    (path,) = folder.glob("??/*.scores")
    return path


def test_an_entry_comes_back_bit_by_bit_and_only_under_its_own_key(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "cache")
    assert cache.get("key") is None
    cache.put("key", VALUE)
    assert ScoreCache(tmp_path / "cache").get("key") == VALUE
    assert cache.get("kez") is None
    with pytest.raises(ValueError, match="JSON compliant"):
        cache.put("other", [float("nan")])
    assert cache_use(tmp_path / "cache").entries == 1


@pytest.mark.parametrize("place", ["magic", "checksum", "body", "end"])
def test_an_altered_or_torn_entry_is_none_and_is_written_anew(tmp_path: Path, place: str) -> None:
    cache = ScoreCache(tmp_path)
    cache.put("key", VALUE)
    path = entry(tmp_path)
    data = bytearray(path.read_bytes())
    at = {"magic": 0, "checksum": 20, "body": len(data) // 2 + 40, "end": len(data) - 1}[place]
    data[at] ^= 1
    path.write_bytes(data)
    assert cache.get("key") is None
    cache.put("key", VALUE)
    whole = path.read_bytes()
    for length in (0, 1, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert cache.get("key") is None
    cache.put("key", VALUE)
    assert cache.get("key") == VALUE


def test_an_entry_of_another_key_in_its_place_is_none(tmp_path: Path) -> None:
    """What a collision of hashes would look like, or a file that was moved."""
    cache, other = ScoreCache(tmp_path / "one"), ScoreCache(tmp_path / "other")
    cache.put("key", VALUE)
    other.put("key of something else", [1.0])
    entry(tmp_path / "one").write_bytes(entry(tmp_path / "other").read_bytes())
    assert cache.get("key") is None


WRITER = """
import sys
from pathlib import Path
from evomerge.evaluation.score_cache import ScoreCache
cache, wrong = ScoreCache(Path(sys.argv[1])), 0
for round in range(10):
    for key in range(20):
        cache.put(f"key {key}", [key] * 500)
        found = cache.get(f"key {(key * 7 + round) % 20}")
        wrong += found is not None and found != [(key * 7 + round) % 20] * 500
print(wrong)
"""


def test_two_processes_write_and_read_the_same_keys_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [writer.communicate()[0].strip() for writer in writers] == ["0", "0"]
    assert cache_use(tmp_path).entries == 20
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = ScoreCache(tmp_path / "file" / "cache")
    cache.put("key", VALUE)
    cache.put("key", VALUE)
    assert cache.get("key") is None
    assert caplog.text.count("cannot be kept here") == 1


def test_clearing_removes_entries_that_were_not_used_for_long_and_nothing_else(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path)
    for key in ("used", "unused"):
        cache.put(key, VALUE)
        old = time.time() - 40 * 86400
        for path in tmp_path.glob("??/*.scores"):
            os.utime(path, (old, old))
    strange = next(tmp_path.glob("??")) / "notes.txt"
    strange.write_text("mine")
    assert cache.get("used") == VALUE
    assert clear_entries(tmp_path, 30 * 86400).entries == 1
    assert cache.get("used") == VALUE
    assert cache.get("unused") is None
    removed = clear_entries(tmp_path)
    assert removed.entries == 1
    assert removed.num_bytes > 0
    assert cache_use(tmp_path).entries == 0
    assert strange.read_text() == "mine"
