"""Writing the resolved experiment, so that a run directory explains and resumes itself."""

from __future__ import annotations

from typing import Any

import yaml


def format_experiment(resolved: dict[str, Any]) -> str:
    """YAML of a resolved experiment; reading it back gives the same experiment."""
    text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
    return "# Written by evomerge: the experiment with every preset written out.\n" + text
