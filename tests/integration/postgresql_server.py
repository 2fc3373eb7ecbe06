"""A PostgreSQL server of a test's own: a new cluster in a folder, on a socket in that folder, no network."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def find_binaries() -> Path | None:
    """Folder of ``initdb`` and ``pg_ctl``; Debian keeps them out of the path."""
    folders = [Path(path) for path in os.environ.get("PATH", "").split(os.pathsep)]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").is_file() and (f / "pg_ctl").is_file()), None)


@contextlib.contextmanager
def postgresql_url() -> Iterator[str]:
    """URL of an empty database; skips the test where there is no server or driver."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server on this machine (initdb, pg_ctl)")
    pytest.importorskip("psycopg", reason="the psycopg driver is not installed (evomerge[postgresql])")
    # Sockets need a short path, and the server refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    prefix: list[str] = []
    if os.geteuid() == 0:
        user = next((name for name in ("postgres", "nobody") if _exists(name)), None)
        if user is None or shutil.which("setpriv") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no other user to run it as")
        entry = pwd.getpwnam(user)
        shutil.chown(folder, user)
        prefix = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
    data = folder / "data"

    def do(program: str, *arguments: str) -> None:
        command = [*prefix, str(binaries / program), *arguments]
        environment = {**os.environ, "HOME": str(folder), "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=120)
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    try:
        do("initdb", "-D", str(data), "-U", "evomerge", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        do("pg_ctl", "start", "-w", "-D", str(data), "-l", str(folder / "log"), "-o", options)
        try:
            yield f"postgresql://evomerge@/postgres?host={folder}"
        finally:
            do("pg_ctl", "stop", "-D", str(data), "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _exists(user: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(user))
    return False
