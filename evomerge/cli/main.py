"""The command line: one verb per file, thin over the Python calls of the same names.

Exit codes: 0 done, 1 user error (no traceback), 2 the run ended with failures, 130 interrupted and resumable.
"""

from __future__ import annotations

import os
import sys

import typer

from evomerge.cli import (
    cache,
    dashboard,
    evaluate,
    export,
    front,
    merge,
    methods,
    optimizers,
    project,
    report,
    resume,
    run,
    spaces,
    validate,
    zoo,
)
from evomerge.cli.console import show_error
from evomerge.errors import EvomergeError, InvalidInput, UserError

app = typer.Typer(
    help="Evolutionary search for merges of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_VERBS = (
    run, resume, validate, merge, evaluate, front, export, report, dashboard, project, methods, optimizers, spaces,
)  # fmt: skip
for _verb in _VERBS:
    app.command(name=_verb.__name__.rpartition(".")[2])(_verb.command)
app.add_typer(cache.app, name="cache", help="The evaluation cache: scores that runs share.")
app.add_typer(zoo.app, name="zoo", help="Small real models built on this machine, without a hub.")


def main() -> None:
    """Entry point of the ``evomerge`` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        # Outside standalone mode the parser returns the code of an Exit instead of raising it.
        code = int(app(standalone_mode=False, prog_name="evomerge") or 0)
    except InvalidInput as error:
        show_error(*(str(problem) for problem in error.problems))
        code = 1
    except UserError as error:
        show_error(str(error))
        code = 1
    except EvomergeError as error:
        show_error(str(error))
        code = 2
    except typer.Exit as leave:
        code = leave.exit_code
    except typer.Abort:
        code = 130
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        shown = getattr(error, "show", None)  # usage errors of the option parser print themselves
        if shown is None:
            raise
        shown()
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
