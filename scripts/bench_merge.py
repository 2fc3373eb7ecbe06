"""Merge the same mergekit YAML with evomerge and with mergekit: seconds, peak memory, and how far the weights differ.

python scripts/bench_merge.py --mergekit PATH/TO/bin/mergekit-yaml [--threads 2] [--repeats 3]

Needs the smollm2 zoo and an environment of its own with mergekit, whose pins conflict with evomerge's. The tools take
turns, each in a process of its own, and the best of the repeats counts. Arithmetic is float32 in both, output bfloat16.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from evomerge.engine.sources import resolve_source
from evomerge.recipes.recipe import Source

BASE, EXPERTS = "zoo:smollm2-135m", ("zoo:math-en", "zoo:spanish", "zoo:capitals")
CASES: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.4},
    "task_arithmetic": {"weight": 0.6},
    "ties": {"weight": 0.7, "density": 0.3},
    "breadcrumbs": {"weight": 0.7, "density": 0.6, "gamma": 0.01},
    "sce": {"select_topk": 0.5},
    "model_stock": {},
    "dare_linear": {"weight": 0.6, "density": 0.5},
    "della": {"weight": 0.6, "density": 0.5, "epsilon": 0.1},
}
RANDOM = ("dare_linear", "della")  # the masks differ, so the weights do


def recipe(method: str) -> str:
    """The mergekit YAML of one case."""
    per_model = {key: value for key, value in CASES[method].items() if key != "select_topk"}
    config: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": str(resolve_source(Source(name))), "parameters": per_model} for name in EXPERTS],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    if method != "linear":
        config["base_model"] = str(resolve_source(Source(BASE)))
    if "select_topk" in CASES[method]:
        config["parameters"] = {"select_topk": CASES[method]["select_topk"]}
    return yaml.safe_dump(config)


def measured(command: list[str], threads: int) -> tuple[float, float]:
    """Seconds and peak resident megabytes of one process."""
    settings = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{errors[-2000:]}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024 / 1e6


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors in fp32."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor.float() for path in files for name, tensor in load_file(path).items()}


def largest_difference(left: Path, right: Path) -> float:
    """Of any weight, as a share of the largest weight of its tensor."""
    mine, theirs = weights(left), weights(right)
    worst = 0.0
    for name, expected in theirs.items():
        worst = max(worst, float((mine[name] - expected).abs().max() / expected.abs().max().clamp_min(1e-9)))
    return worst


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mergekit", required=True, help="the mergekit-yaml program")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| method | evomerge | mergekit | times as fast | peak memory, evomerge and mergekit | weights differ by |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for method in options.methods:
            (path / "merge.yaml").write_text(recipe(method))
            ours, theirs = [], []
            for _ in range(options.repeats):
                for name in ("ours", "theirs"):
                    shutil.rmtree(path / name, ignore_errors=True)
                command = [sys.executable, "-m", "evomerge", "merge", str(path / "merge.yaml"), str(path / "ours")]
                ours.append(measured(command, options.threads))
                theirs.append(
                    measured([options.mergekit, str(path / "merge.yaml"), str(path / "theirs")], options.threads)
                )
            difference = "random" if method in RANDOM else f"{largest_difference(path / 'ours', path / 'theirs'):.1e}"
            (mine, my_memory), (other, other_memory) = min(ours), min(theirs)
            print(
                f"| {method} | {mine:.1f} s | {other:.1f} s | {other / mine:.1f} | "
                f"{my_memory:.0f}, {other_memory:.0f} MB | {difference} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
