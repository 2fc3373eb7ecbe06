"""The lock that keeps two processes from running in one directory.

The operating system frees it when the process ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path

from evomerge.errors import UserError

_logger = logging.getLogger(__name__)

# A forked child shares the lock of its parent and would keep it alive: children close their copies.
_held: set[int] = set()


class RunLock:
    """An exclusive lock on a file, held until ``release`` or the end of the process.

    Args:
        path: the lock file; its content names the holder for people.

    Raises:
        UserError: another process holds the lock; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 200).decode(errors="replace").strip() or "an unknown process"
            os.close(handle)
            raise UserError(
                f"{path.parent}: another run is using this directory ({holder}). Wait until it ends, stop that "
                "process, or give this run another name."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
                os.close(handle)
                raise
            _logger.warning("%s: this file system has no locks; do not start a second run here", path.parent)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._handle: int | None = handle
        _hold(handle)

    def release(self) -> None:
        """Free the lock; a second call does nothing."""
        if self._handle is not None:
            _held.discard(self._handle)
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            os.close(self._handle)
            self._handle = None


_registered: list[bool] = []


def _hold(handle: int) -> None:
    if not _registered:
        os.register_at_fork(after_in_child=_close_held)
        _registered.append(True)
    _held.add(handle)


def _close_held() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


def holder_has_gone(path: Path) -> bool:
    """Whether the process that a lock file names ran on this machine and runs no more.

    Only read, so that a run which starts just now is not disturbed. False where nothing is known.
    """
    try:
        words = path.read_text().split()
        if len(words) != 4 or words[3] != socket.gethostname():
            return False
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    return False
