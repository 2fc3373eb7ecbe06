import os

import pytest

from evomerge.errors import UserError
from evomerge.store.event_log import EventLog, complete_size
from evomerge.store.events import Told, format_event


def test_reads_back_what_was_appended(tmp_path, events):
    with EventLog(tmp_path / "events.jsonl") as log:
        assert log.read() == []
        log.append(events[0])
        log.append(*events[1:])
        log.append()
        assert log.read() == events
    with EventLog(tmp_path / "events.jsonl") as log:
        log.append(Told((99,)))
        assert log.read() == [*events, Told((99,))]


def test_earlier_bytes_never_change(tmp_path, events):
    path = tmp_path / "events.jsonl"
    before = b""
    for event in events:
        with EventLog(path) as log:
            log.append(event)
        after = path.read_bytes()
        assert after.startswith(before)
        assert len(after) > len(before)
        before = after


def test_group_commit_is_one_fsync(tmp_path, events, monkeypatch):
    calls = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append(handle), fsync(handle)))
    with EventLog(tmp_path / "events.jsonl") as log:
        log.append(events[0])
        calls.clear()
        log.append(*events[1:])
        assert len(calls) == 1
        log.append(Told((1,)))
        assert len(calls) == 2


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_torn_last_line_is_ignored_and_then_removed(tmp_path, events, cut, caplog):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.append(*events)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    log = EventLog(path)
    assert log.read() == events[:-1]
    assert path.read_bytes() == whole[:-cut]
    log.append(Told((99,)))
    assert log.read() == [*events[:-1], Told((99,))]
    assert "torn last line" in caplog.text


def test_a_log_torn_in_its_first_line_starts_over(tmp_path, events):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"v":1,"eve')
    log = EventLog(path)
    assert log.read() == []
    log.append(events[0])
    assert log.read() == [events[0]]


def test_trailing_zeros_of_a_power_cut_are_a_torn_line(tmp_path, events):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.append(*events)
    path.write_bytes(path.read_bytes() + bytes(500))
    log = EventLog(path)
    assert log.read() == events
    log.append(Told((99,)))
    assert log.read()[-1] == Told((99,))


def test_damage_in_the_middle_names_file_and_line(tmp_path, events):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.append(*events)
    lines = path.read_bytes().split(b"\n")
    lines[4] = lines[4][:20] + b"\xff\xfe" + lines[4][22:]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=r"events\.jsonl: line 5 is not JSON"):
        EventLog(path).read()


def test_other_schema_version_is_refused(tmp_path, events):
    path = tmp_path / "events.jsonl"
    path.write_text(format_event(events[0]).replace('"v":1', '"v":2') + "\n")
    with pytest.raises(UserError, match="line 1 has schema version 2; this evomerge reads version 1"):
        EventLog(path).read()


def test_a_reader_cannot_append(tmp_path):
    with pytest.raises(AssertionError):
        EventLog(tmp_path / "events.jsonl", writable=False).append(Told(()))
    assert not (tmp_path / "events.jsonl").exists()


def test_nothing_of_a_refused_group_is_written(tmp_path, events):
    with EventLog(tmp_path / "events.jsonl") as log:
        log.append(events[0])
        with pytest.raises(ValueError, match="finite"):
            log.append(Told((1,)), type(events[0])(**{**events[0].__dict__, "time": float("nan")}))
        assert log.read() == [events[0]]


@pytest.mark.parametrize(("content", "expected"), [(b"", 0), (b"abc", 0), (b"a\nbc", 2), (b"a\nb\n", 4)])
def test_complete_size(tmp_path, content, expected):
    path = tmp_path / "file"
    for padding in (b"", b"x" * 70_000 + b"\n", b"\n" + b"x" * 200_000):
        data = padding + content
        path.write_bytes(data)
        with path.open("rb") as stream:
            assert complete_size(stream.fileno(), len(data)) == data.rfind(b"\n") + 1
    path.write_bytes(content)
    with path.open("rb") as stream:
        assert complete_size(stream.fileno(), len(content)) == expected
