"""A bar that counts tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import Progress

from evomerge.cli.console import stderr


@contextmanager
def tensors_progress(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar on a terminal; yields what to call with (tensors done, tensors in total)."""
    if quiet or not stderr.is_terminal:
        yield None
        return
    with Progress(console=stderr, transient=True) as bar:
        task = bar.add_task("tensors", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
