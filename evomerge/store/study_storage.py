"""Where Optuna studies lie: a journal file, or a database by its URL. Passwords never reach a message."""

from __future__ import annotations

import os
import time
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from evomerge.errors import UserError
from evomerge.store.event_log import complete_size
from evomerge.store.study_names import shown

# An append holds the journal's lock for milliseconds; a lock this old was left by a killed process.
_STALE_LOCK_SECONDS = 1.0
# Python package -> what pip calls it, where the names differ.
_INSTALLED_AS = {"psycopg": "evomerge[postgresql]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}


def open_to_write(place: str) -> BaseStorage:
    """Open a storage for a projection; tables and files are made.

    Args:
        place: a journal's path, or an Optuna storage URL.

    Raises:
        UserError: it cannot be opened, or the database's driver is not installed.
    """
    try:
        if "://" in place:
            return optuna.storages.get_storage(place)
        return _open_journal(Path(place))
    except Exception as error:
        raise storage_error(place, error) from error


def open_to_read(place: str) -> BaseStorage:
    """Open a storage that exists; nothing in it is changed, and a running writer is not disturbed.

    Args:
        place: a journal's path, or an Optuna storage URL.

    Raises:
        UserError: it cannot be opened, or the database's driver is not installed.
    """
    try:
        if "://" not in place:
            return JournalStorage(JournalFileBackend(place))
        scheme, _, path = place.partition(":///")
        if scheme.startswith("sqlite") and path and not Path(path.partition("?")[0]).is_file():
            raise FileNotFoundError("there is no such file")  # SQLite would make an empty one
        storage = RDBStorage(place, skip_compatibility_check=True, skip_table_creation=True)
        return optuna.storages.get_storage(storage)  # with a cache of the trials that are finished
    except Exception as error:
        raise storage_error(place, error) from error


def storage_error(place: str, error: Exception) -> UserError:
    """What to tell a person whose storage does not work."""
    where = f"{shown(place)}: cannot open this Optuna storage"
    driver = error if isinstance(error, ModuleNotFoundError) else error.__cause__
    if isinstance(driver, ModuleNotFoundError):
        package = _INSTALLED_AS.get(driver.name or "", driver.name)
        return UserError(
            f"{where}: the driver of this database, the Python package {driver.name!r}, is not installed. "
            f"Install it: pip install '{package}'"
        )
    lines = shown(str(error)).strip().splitlines()
    return UserError(
        f"{where} ({type(error).__name__}: {lines[0][:300] if lines else 'no message'}). "
        "Expected a journal file path or a URL such as sqlite:///study.db."
    )


def _open_journal(path: Path) -> BaseStorage:
    """Open a journal file; one that cannot be read is put aside for an empty one."""
    _mend_journal(path)
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError:
        raise
    except Exception:
        if path.suffix != ".journal":
            raise
        path.replace(f"{path}.damaged")
        return JournalStorage(JournalFileBackend(str(path)))


def _mend_journal(path: Path) -> None:
    """Undo what a killed writer leaves.

    A torn last line makes the file unreadable after the next append; a lock stalls the first writer half a minute.
    """
    lock = Path(f"{path}.lock")
    deadline = time.monotonic() + _STALE_LOCK_SECONDS
    while os.path.lexists(lock):
        if time.monotonic() > deadline:
            lock.unlink(missing_ok=True)
            break
        time.sleep(0.05)
    if path.exists() and path.suffix == ".journal":
        with path.open("rb+") as stream:
            size = os.fstat(stream.fileno()).st_size
            complete = complete_size(stream.fileno(), size)
            if complete < size:
                stream.truncate(complete)
