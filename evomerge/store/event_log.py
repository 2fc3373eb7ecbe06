"""The append-only event log: one JSON line per event, on disk before ``append`` returns.

What a crash can leave is a last line without its newline. Readers ignore it, the next append removes it. Anything else
that is no event is damage: it is reported with its line number and never repaired silently.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import TracebackType

from evomerge.errors import UserError
from evomerge.files import fsync_dir
from evomerge.store.event_fields import EventError
from evomerge.store.events import Event, format_event, parse_event

_logger = logging.getLogger(__name__)


class EventLog:
    """One ``events.jsonl``. A single process appends (the run directory's lock sees to it); any number may read.

    Args:
        path: the file; it is created by the first append.
        writable: False makes ``append`` an error, for readers that do not hold the run directory's lock.
    """

    def __init__(self, path: Path, writable: bool = True) -> None:
        self.path = path
        self.writable = writable
        self._handle: int | None = None
        self._size = 0

    def append(self, *events: Event) -> None:
        """Write events with one write and one fsync; several events of one call are a group commit.

        On failure nothing of the call stays in the file.

        Raises:
            UserError: the disk is full or the file cannot be written.
            ValueError: an event holds a NaN or an infinity.
        """
        assert self.writable, "append to an event log that was opened for reading"
        if not events:
            return
        data = "".join(format_event(event) + "\n" for event in events).encode()
        try:
            if self._handle is None:
                self._open()
            assert self._handle is not None
            self._write(self._handle, data)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot write to the event log: {error.strerror or error}. Everything up to the last "
                f"event ({self._size} bytes) is safe. Make room or mend the disk, then resume the run."
            ) from error

    def read(self) -> list[Event]:
        """All complete events, in order; empty when there is no file.

        Raises:
            UserError: a line is damaged or of another schema version; the message names it.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.path}: cannot read the event log: {error.strerror or error}.") from error
        events: list[Event] = []
        lines = data.split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                events.append(parse_event(line))
            except EventError as error:
                raise UserError(
                    f"{self.path}: line {number} {error}. The log is damaged or was written by another version; "
                    f"restore it from a copy, or keep its first {number - 1} lines to go on from there."
                ) from error
        return events

    def close(self) -> None:
        """Close the file. Events are on disk already."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        fresh = not self.path.exists()
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(handle).st_size
            self._size = complete_size(handle, size)
            if self._size < size:
                _logger.warning("%s: dropped a torn last line of %d bytes", self.path, size - self._size)
                os.ftruncate(handle, self._size)
                os.fsync(handle)
            if fresh:
                fsync_dir(self.path.parent)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle

    def _write(self, handle: int, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.write(handle, data[written:])
            os.fsync(handle)
        except BaseException:
            os.ftruncate(handle, self._size)
            # After a failed fsync the kernel may have dropped pages: the next append starts from what is on disk.
            self.close()
            raise
        self._size += len(data)


def complete_size(handle: int, size: int) -> int:
    """Bytes of a file up to and with its last newline; 0 when it has none.

    Args:
        handle: open file descriptor.
        size: bytes of the file.
    """
    block, end = 65536, size
    while end > 0:
        start = max(0, end - block)
        position = os.pread(handle, end - start, start).rfind(b"\n")
        if position >= 0:
            return start + position + 1
        end = start
    return 0
