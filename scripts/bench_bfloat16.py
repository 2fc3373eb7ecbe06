"""How often questions get the same answer in bfloat16: our scorer, lm-eval's own loop, and lm-eval's in float32.

python scripts/bench_bfloat16.py [--model zoo:smollm2-135m] [--documents 170] [--cases choice choice_5shot ...]

One row a case: questions; for each pair of ways the questions with the same best choice, and the mean and largest
distance of log-likelihoods. "rows 1" is lm-eval's own loop with batch size 1 beside its 32: what bfloat16 leaves open
by itself. The best of equal choices is the first, as lm-eval takes it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from bench_scorer import _cases, _folder

DEFAULT = ["choice"]
PAIRS = [("ours", "lm-eval"), ("rows 1", "lm-eval"), ("ours", "float32"), ("lm-eval", "float32"), ("rows 1", "float32")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:smollm2-135m", help="zoo:<name> or a local folder")
    parser.add_argument("--documents", type=int, default=170)
    parser.add_argument("--cases", nargs="*", default=DEFAULT)
    options = parser.parse_args()
    folder = _folder(options.model)
    with tempfile.TemporaryDirectory() as made:
        cases = {case.name for case in _cases(Path(made), options.documents)}
        print("| case | questions | " + " | ".join(f"{a}, {b}" for a, b in PAIRS) + " |")
        print("|---" * (2 + len(PAIRS)) + "|")
        for name in options.cases:
            assert name in cases, f"one of {sorted(cases)}"
            print(_row(name, folder, made), flush=True)


def _row(name: str, folder: Path, tasks: str) -> str:
    found = {
        "ours": _likelihoods(name, folder, tasks, "bfloat16", exact=False),
        "lm-eval": _likelihoods(name, folder, tasks, "bfloat16", exact=True),
        "rows 1": _likelihoods(name, folder, tasks, "bfloat16", exact=True, rows=1),
        "float32": _likelihoods(name, folder, tasks, "float32", exact=True),
    }
    cells = [_compared(found[a], found[b]) for a, b in PAIRS]
    return f"| {name} | {len(found['ours'])} | {' | '.join(cells)} |"


def _compared(left: list[np.ndarray[Any, Any]], right: list[np.ndarray[Any, Any]]) -> str:
    same = np.mean([a.argmax() == b.argmax() for a, b in zip(left, right, strict=True)])
    gap = np.abs(np.concatenate(left) - np.concatenate(right))
    return f"{same:.2%} ({gap.mean():.3f}, {gap.max():.2f})"


def _likelihoods(
    name: str, folder: Path, tasks: str, dtype: str, exact: bool, rows: int | None = None
) -> list[np.ndarray[Any, Any]]:
    """Of each question's choices."""
    import torch
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evomerge.evaluation.lm_eval_scorer import PreparedScorer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    task = TaskManager(include_path=tasks, include_defaults=False).load([name])["tasks"][name]
    task.set_fewshot_seed(1234)
    task.build_all_requests(rank=0, world_size=1)
    groups: dict[int, list[Any]] = {}
    for instance in task.instances:
        groups.setdefault(instance.doc_id, []).append(instance)
    scorer = PreparedScorer(model, AutoTokenizer.from_pretrained(folder), batch_size=rows, exact=exact)
    (prepared,) = scorer.prepare(list(groups.values()))
    answers = iter(scorer.score(prepared))
    return [np.array([next(answers)[0] for _ in group]) for group in groups.values()]


if __name__ == "__main__":
    main()
