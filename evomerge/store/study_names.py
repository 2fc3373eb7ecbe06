"""What readers and writers of Optuna studies agree on, and storages' names as people may see them."""

from __future__ import annotations

import re
from pathlib import Path

BASELINES_SUFFIX = " baselines"
RUN_ATTRIBUTE = "run"  # of a study: whose it is
PROJECTED_ATTRIBUTE = "projected at"  # of a study: when its writing began

_PASSWORD = re.compile(r"(://[^:/@]*):[^@\s]*@")


def shown(place: str | Path) -> str:
    """A storage's path or URL, or a text that holds one, without its password."""
    return _PASSWORD.sub(r"\1:***@", str(place))
