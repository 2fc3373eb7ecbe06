"""A bar that counts what a merge has written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from evomerge.cli.console import stderr


@contextmanager
def tensors_progress(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar with speed and time left on a terminal; yields what to call with (bytes written, bytes in total)."""
    if quiet or not stderr.is_terminal:
        yield None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TextColumn("left:"), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task("merge", total=None)
        sizes: list[int] = []

        def show(done: int, total: int) -> None:
            if sizes != [total]:  # what an earlier attempt had written is no part of the speed
                sizes[:] = [total]
                bar.reset(task, total=total, completed=done)
            else:
                bar.update(task, completed=done)

        yield show
