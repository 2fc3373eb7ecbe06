"""A Python environment that has a vLLM: this one, with the stand-in in front."""

from __future__ import annotations

import sys
from pathlib import Path

STANDINS = Path(__file__).parent


def make_python(folder: Path, *first: Path) -> str:
    """An interpreter that finds packages in some folders first, and then where it is told to by its caller.

    Args:
        folder: where it goes.
        *first: further folders, before the stand-in; none = without it.
    """
    path = folder / "python"
    places = ":".join(map(str, first))
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{places}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return str(path)
