"""Merge the same mergekit YAML with evomerge and with mergekit: seconds, peak memory, and how far the weights differ.

python scripts/bench_merge.py --mergekit PATH/TO/bin/mergekit-yaml [--threads 2] [--repeats 3] [--zoo small|micro]
    [--experts 3,8] [--in-place]

Needs the zoo and an environment of its own with mergekit, whose pins conflict with evomerge's. The tools take turns,
each in a process of its own, and the best of the repeats counts. Arithmetic is float32 in both, the output has the
sources' dtype. With more experts than the zoo has, sources repeat as copies. --in-place adds what writing a candidate
into a live model takes, second and later ones.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from evomerge.engine.sources import resolve_source
from evomerge.recipes.recipe import Source

ZOOS = {
    "small": ("zoo:smollm2-135m", ("zoo:math-en", "zoo:spanish", "zoo:capitals"), "bfloat16"),
    "micro": ("zoo:micro-base", ("zoo:micro-add", "zoo:micro-let", "zoo:micro-rev"), "float32"),
}
# Values of each model and of the merge, for every method that both tools have.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"weight": 0.4}, {}),
    "task_arithmetic": ({"weight": 0.6}, {}),
    "ties": ({"weight": 0.7, "density": 0.3}, {}),
    "breadcrumbs": ({"weight": 0.7, "density": 0.6, "gamma": 0.01}, {}),
    "breadcrumbs_ties": ({"weight": 0.7, "density": 0.6, "gamma": 0.01}, {}),
    "sce": ({}, {"select_topk": 0.5}),
    "model_stock": ({}, {}),
    "slerp": ({}, {"t": 0.4}),
    "nuslerp": ({"weight": 0.5}, {}),
    "multislerp": ({"weight": 0.4}, {}),
    "karcher": ({}, {}),
    "nearswap": ({}, {"t": 0.001}),
    "arcee_fusion": ({}, {}),
    "ram": ({}, {}),
    "ramplus_tl": ({}, {}),
    "passthrough": ({}, {}),
    "dare_linear": ({"weight": 0.6, "density": 0.5}, {}),
    "dare_ties": ({"weight": 0.6, "density": 0.5}, {}),
    "della": ({"weight": 0.6, "density": 0.5, "epsilon": 0.1}, {}),
    "della_linear": ({"weight": 0.6, "density": 0.5, "epsilon": 0.1}, {}),
}
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")  # the masks differ, so the weights do
COUNTS = {"slerp": 1, "nuslerp": 2, "nearswap": 1, "arcee_fusion": 1, "passthrough": 1}  # experts a method takes
NO_BASE = ("linear", "nuslerp", "multislerp", "karcher", "passthrough")


class Models:
    """The models of one zoo, as many experts as wanted: what is missing is copied, under a name of its own."""

    def __init__(self, zoo: str, folder: Path) -> None:
        base, experts, self.dtype = ZOOS[zoo]
        self.base = str(resolve_source(Source(base)))
        self._experts = [str(resolve_source(Source(name))) for name in experts]
        self._folder = folder

    def experts(self, count: int) -> list[str]:
        """Directories of that many experts."""
        while len(self._experts) < count:
            copy = self._folder / f"expert-{len(self._experts)}"
            shutil.copytree(self._experts[len(self._experts) % 3], copy)
            self._experts.append(str(copy))
        return self._experts[:count]


def recipe(method: str, models: Models, count: int) -> str:
    """The mergekit YAML of one case."""
    per_model, merge = CASES[method]
    experts = models.experts(COUNTS.get(method, count))
    config: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": path, "parameters": per_model} for path in experts],
        "dtype": "float32",
        "out_dtype": models.dtype,
    }
    if method not in NO_BASE:
        config["base_model"] = models.base
    if merge:
        config["parameters"] = merge
    return yaml.safe_dump(config)


def seconds_in_place(text: str) -> float:
    """Seconds a candidate takes in a live model, once what does not change is prepared: the best of three."""
    from evomerge.engine.live_model import LiveModel
    from evomerge.recipes.recipe_yaml import parse_recipe

    parsed = parse_recipe(text)
    sources = [(str(index), source) for index, source in enumerate(parsed.sources)]
    live = LiveModel(None, sources, device="cpu")
    live.apply(parsed)
    return min(live.apply(parse_recipe(text)) for _ in range(3))


# The system counts a process's memory from before it becomes the program, so the one that starts it must be small.
LAUNCHER = """
import os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - began, usage.ru_maxrss * 1024 / 1e6)
sys.exit(status != 0)
"""


def measured(command: list[str], threads: int) -> tuple[float, float]:
    """Seconds and peak resident megabytes of one process."""
    settings = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(launcher, env={**os.environ, **settings}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


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


def compare(options: argparse.Namespace, folder: Path, models: Models, method: str, count: int) -> str:
    """One row of the table."""
    text = recipe(method, models, count)
    (folder / "merge.yaml").write_text(text)
    ours, theirs = [], []
    for _ in range(options.repeats):
        for name in ("ours", "theirs"):
            shutil.rmtree(folder / name, ignore_errors=True)
        command = [sys.executable, "-m", "evomerge", "merge", str(folder / "merge.yaml"), str(folder / "ours")]
        ours.append(measured(command, options.threads))
        theirs.append(measured([options.mergekit, str(folder / "merge.yaml"), str(folder / "theirs")], options.threads))
    difference = "random" if method in RANDOM else f"{largest_difference(folder / 'ours', folder / 'theirs'):.1e}"
    (mine, _), (other, _) = min(ours), min(theirs)
    my_memory, other_memory = (max(memory for _, memory in runs) for runs in (ours, theirs))
    live = f" {seconds_in_place(text):.3f} s |" if options.in_place else ""
    return (
        f"| {method} | {COUNTS.get(method, count)} | {mine:.1f} s | {other:.1f} s | {other / mine:.1f} | "
        f"{my_memory:.0f} MB | {other_memory:.0f} MB | {difference} |{live}"
    )


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", required=True, help="the mergekit-yaml program")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--zoo", default="small", choices=list(ZOOS))
    parser.add_argument("--experts", default="3", help="numbers of experts, for example 3,8: memory must not grow")
    parser.add_argument("--in-place", action="store_true", help="also time a candidate in a live model")
    options = parser.parse_args()
    counts = [int(part) for part in options.experts.split(",")]
    torch.set_num_threads(options.threads)
    head = ["method", "experts", "evomerge", "mergekit", "times as fast", "evomerge's peak", "mergekit's peak"]
    head += ["weights differ by", *(["in place"] if options.in_place else [])]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    with tempfile.TemporaryDirectory() as name:
        models = Models(options.zoo, Path(name))
        for method in options.methods:
            for count in counts[:1] if method in COUNTS else counts:
                print(compare(options, Path(name), models, method, count), flush=True)


if __name__ == "__main__":
    main()
