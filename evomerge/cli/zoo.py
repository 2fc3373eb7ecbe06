"""``evomerge zoo``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from evomerge.cli.console import show_json, stderr, stdout, table
from evomerge.cli.options import AsJson, Quiet

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.command(name="list")
def list_models(as_json: AsJson = False) -> None:
    """List the zoo's models and whether they are built."""
    from evomerge.zoo.build import describe

    models = describe()
    if as_json:
        show_json([{**vars(model), "built": built} for model, built in models])
        return
    shown = table("Zoo", "model", "group", "built", ">core-minutes", "description")
    for model, built in models:
        name = f"zoo:{model.name}"
        shown.add_row(name, model.group, "yes" if built else "no", f"{model.minutes:g}", model.description)
    stdout.print(shown)


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="A model, a group (micro, smollm2), or all.")], quiet: Quiet = False
) -> None:
    """Build models on this machine; what is complete is kept, what was interrupted goes on."""
    from evomerge.zoo.build import build as build_models
    from evomerge.zoo.build import plain_progress

    if quiet:
        paths = build_models(name, lambda event: None)
    elif stderr.is_terminal:
        with _Bars(stderr) as bars:
            paths = build_models(name, bars.show)
    else:
        paths = build_models(name, plain_progress)
    for path in paths:
        stdout.print(str(path), markup=False, highlight=False)


class _Bars:
    """One bar for each model under construction."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._progress.stop()

    def show(self, event: object) -> None:
        """Show one event of a build."""
        from evomerge.zoo.build import BuildEvent

        assert isinstance(event, BuildEvent)
        if event.model not in self._tasks:
            self._tasks[event.model] = self._progress.add_task(event.model, total=None, text="")
        text = f"loss {event.loss:.3f}" if event.loss is not None else event.text
        total = event.num_steps or (1 if event.text == "done" else None)
        done = event.step if event.num_steps else int(event.text == "done")
        self._progress.update(self._tasks[event.model], completed=done, total=total, text=text)
