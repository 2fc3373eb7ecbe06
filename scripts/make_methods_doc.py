"""Write docs/methods.md from the methods' specs and docstrings: python scripts/make_methods_doc.py [--check]."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path

from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.methods.catalogue import ALL_SPECS, load_method
from evomerge.methods.whole_model import WholeModelMethod
from evomerge.recipes.mergekit_dialect import DIALECT

TARGET = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
HEAD = """# Merge methods

Written by `scripts/make_methods_doc.py` from the methods themselves. `evomerge methods` lists them in the terminal, and
`method:` in a recipe or a search space names one. θ0 is the base, θ_i expert i, τ_i = θ_i - θ0 its task vector. A
hyperparameter *per expert* has a value for each expert; *slow* means that changing it repeats the preparation of every
tensor (sorting, singular values), so that searching it costs more. The range is what a search takes by default.
Arithmetic is float32 with one rounding into the output; statistics are taken tensor by tensor where the text does not
say the whole model. Any method can stand before or after another one (`before`, `after` in a recipe or search space).

Cost is what a merge needs beside passes over the weights: nothing (*streaming*), the order of entries (*ranking*),
*singular values*, or *optimisation* of every matrix. A search pays for it once, unless it searches what is slow.

"""


def section(spec: MethodSpec) -> str:
    """One method."""
    module, _, name = spec.target.partition(":")
    described = inspect.cleandoc(getattr(importlib.import_module(module), name).__doc__ or "")
    text = "\n".join(line for line in described.splitlines() if not line.startswith("Reference:")).strip()
    reference = re.search(r"Reference: (.*)", described)
    lines = [f"## {spec.name}", "", f"{spec.title}. {_models(spec)}"]
    lines += ["", f"*Use it for* {spec.use}. *Cost:* {_cost(spec)}.", "", text, ""]
    lines += ["| hyperparameter | | default | range | |", "|---|---|---|---|---|"]
    lines += [_row(parameter) for parameter in spec.hyperparameters]
    known = "read and written as mergekit YAML" if spec.name in DIALECT else "not in mergekit"
    lines += ["", f"{reference.group(1) if reference else spec.paper}. {known[0].upper()}{known[1:]}.", ""]
    return "\n".join(lines)


def _cost(spec: MethodSpec) -> str:
    whole = isinstance(load_method(spec.name), WholeModelMethod)
    survey = " It looks at the whole model first" + (", with `trim_scope: global`" if spec.name == "ties" else "")
    return spec.cost + (f";{survey.lower()}" if whole else "")


def _table() -> str:
    """All methods in one table."""
    rows = [f"| [{s.name}](#{s.name}) | {s.title} | {s.cost} | {_paper(s)} |" for s in ALL_SPECS.values()]
    return "\n".join(["| method | | cost | paper |", "|---|---|---|---|", *rows, "", ""])


def _paper(spec: MethodSpec) -> str:
    return f"[{spec.paper}](https://arxiv.org/abs/{spec.arxiv})" if spec.arxiv else spec.paper


def _models(spec: MethodSpec) -> str:
    low, high = spec.min_experts, spec.max_experts
    count = f"{low} or more experts" if high is None else f"{low} to {high} experts"
    if low == high:
        count = "one expert" if low == 1 else f"{low} experts"
    return f"Takes {'a base and ' if spec.needs_base else ''}{count}."


def _row(parameter: Hyperparameter) -> str:
    notes = ["per expert"] if parameter.per == "expert" else []
    notes += ["slow"] if parameter.structural else []
    default = "required" if parameter.default is None else str(parameter.default).lower()
    values = f"{parameter.low:g} to {parameter.high:g}" if parameter.kind in ("float", "int") else "true, false"
    if parameter.kind == "choice":
        values = ", ".join(parameter.choices)
    return f"| `{parameter.name}` | {', '.join(notes)} | {default} | {values} | {parameter.description} |"


def document() -> str:
    """The whole page."""
    return HEAD + _table() + "\n".join(section(spec) for spec in ALL_SPECS.values())


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(None if TARGET.read_text() == document() else f"{TARGET} is not what the methods say; write it anew")
    TARGET.write_text(document())
